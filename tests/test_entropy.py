"""Entropy coding: what goes in comes out, in no more bytes than theory says, and the same ones."""

import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicompress.arrays import freeze
from minicompress.errors import CompressionError, FileFormatError
from minicompress.storage import bits, entropy, huffman, matrices, range_coder
from minicompress.storage.entropy import range_decode, range_encode
from minicompress.storage.huffman import huffman_decode, huffman_encode
from minicompress.storage.range_coder import (
    Contexts,
    RangeDecoder,
    RangeEncoder,
    code_number,
    new_context,
)
from minicompress.testing.checks import check_codec, check_pure
from minicompress.testing.strategies import LAYOUTS, in_layout

LOW, HIGH = -(2**31), 2**31 - 1


def range_encode_matrix(matrix):
    """A matrix alone: its shape, then `code_matrix`."""
    coder, numbers = RangeEncoder(), Contexts()
    for n in matrix.shape:
        code_number(coder, numbers, n)
    matrices.code_matrix(coder, matrix.shape, matrix.astype(np.int64))
    return coder.finish()


def range_decode_matrix(blob, *, max_count=2**25):
    coder, numbers = RangeDecoder(blob), Contexts()
    shape = code_number(coder, numbers, 0), code_number(coder, numbers, 0)
    if max(*shape, math.prod(shape)) > max_count:
        raise FileFormatError("too many")
    matrix = matrices.code_matrix(coder, shape)
    coder.finish()
    return freeze(matrix)


CODECS = {
    "huffman": (huffman_encode, huffman_decode, 1),
    "range": (range_encode, range_decode, 1),
    "matrix": (range_encode_matrix, range_decode_matrix, 2),
}


def integers(ndim=1):
    """Arrays of integers: few distinct ones, mostly zeros, or any at all."""
    shape = st.tuples(*[st.integers(0, 40 if ndim == 1 else 9)] * ndim)
    entries = st.sampled_from(
        [
            st.integers(-2, 2),
            st.sampled_from([0, 0, 0, 0, 5, -3]),
            st.integers(LOW, HIGH),
            st.sampled_from([LOW, -1, 0, HIGH]),
        ]
    )
    return st.tuples(shape, entries).flatmap(
        lambda p: arrays(np.int64, p[0], elements=p[1], fill=st.nothing())
    )


# -- all codecs: the round trip -------------------------------------------------------------------


def law_round_trip(codec, symbols):
    encode, decode = codec[:2]
    check_codec(encode, decode, symbols)
    assert not decode(encode(symbols)).flags.writeable


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
def test_any_symbols_survive(name, data):
    law_round_trip(CODECS[name], data.draw(integers(CODECS[name][2])))


SPECIAL = {
    "none": np.zeros(0, np.int64),
    "one": np.array([-7]),
    "one symbol, often": np.full(1000, 3),
    "two symbols": np.array([HIGH, LOW]),
    "4,096 symbols": np.arange(4096)[::-1] * 3 - 7000,
    "long runs": np.repeat([0, 5, 0, -5, 0], [100_000, 1, 70_000, 2, 100_000]),
    "no zero at the end": np.array([0] * 50 + [1]),
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("symbols", SPECIAL)
def test_hard_arrays_survive(name, symbols):
    shape = (-1,) if CODECS[name][2] == 1 else (1 if SPECIAL[symbols].size % 2 else 2, -1)
    law_round_trip(CODECS[name], SPECIAL[symbols].reshape(shape))


def test_huffman_of_65536_symbols():
    everything = np.arange(65_536)[::-1] * 3 - 70_000
    law_round_trip(CODECS["huffman"], everything)
    assert len(huffman_encode(everything)) < 65_536 * (16 + 4 + 2) / 8 + 20  # codes, lengths, gaps
    law_round_trip(CODECS["huffman"], np.repeat(everything, 1 + (everything % 9 == 0)))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_any_dtype_and_layout_gives_the_same_bytes(name, dtype):
    encode, _, ndim = CODECS[name]
    symbols = np.arange(24).astype(dtype).reshape((6, 4) if ndim == 2 else -1) % 5
    check_pure(encode, symbols)
    for layout in LAYOUTS:
        assert encode(in_layout(symbols, layout)) == encode(symbols.astype(np.int64))


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_empty_and_small_matrices(name, shape):
    if CODECS[name][2] == 2:
        law_round_trip(CODECS[name], np.full(shape, 9))


WRONG_ARGUMENTS = {
    "floats": np.zeros(3),
    "bools": np.zeros(3, bool),
    "too many axes": np.zeros((2, 2, 2), int),
    "too large": np.array([2**31]),
    "too small": np.array([LOW - 1]),
    "large and unsigned": np.array([2**64 - 1], np.uint64),
}


@pytest.mark.parametrize("name", ["huffman", "range"])
@pytest.mark.parametrize("wrong", WRONG_ARGUMENTS)
def test_wrong_symbols_are_refused(name, wrong):
    encode, decode, _ = CODECS[name]
    with pytest.raises(CompressionError, match="symbols"):
        encode(WRONG_ARGUMENTS[wrong])
    with pytest.raises(CompressionError, match="blob"):
        decode("text")
    with pytest.raises(CompressionError, match="max_count"):
        decode(encode(np.zeros(1, int)), max_count=-1)


# -- all codecs: blobs that are not whole ----------------------------------------------------------


def law_only_format_errors(decode, blob):
    """A blob decodes, or is refused; nothing else."""
    try:
        decode(blob, max_count=10_000)
    except FileFormatError:
        return False
    return True


@pytest.mark.parametrize("name", CODECS)
@given(blob=st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(name, blob):
    law_only_format_errors(CODECS[name][1], blob)


@pytest.mark.parametrize("name", CODECS)
def test_altered_blobs_decode_or_are_refused(name):
    encode, decode, ndim = CODECS[name]
    blob = encode((np.arange(60) ** 2 % 7).reshape((-1,) if ndim == 1 else (10, 6)))
    for place in range(len(blob)):
        for flip in (1, 2, 16, 128, 255):
            altered = bytearray(blob)
            altered[place] ^= flip
            law_only_format_errors(decode, bytes(altered))
    assert not any(law_only_format_errors(decode, blob + bytes([n])) for n in range(256))
    if name == "huffman":
        assert not any(law_only_format_errors(decode, blob[:n]) for n in range(len(blob)))


def test_wrong_huffman_blobs_are_refused():
    for blob, why in {
        b"": "more bytes",
        b"\x80\x00": "longer than it need be",
        b"\x80" * 11: "longer than 10",
        b"\x01\x02\x00\x00\x00\x00": "cannot be",  # two distinct symbols in one
        b"\xff\xff\xff\xff\x0f\x02\x00" + bytes(9): "max_count",
        b"\xff\x0f\x02\x00" + bytes(9): "cannot be",  # 2,047 symbols in 9 bytes
        b"\x02\x02\x00\x21" + bytes(9): "33 bits",
        b"\x03\x03\x00\x00\x00\x00": "lengths",  # three codes of one bit
        b"\x02\x02\x00\x00\x00\x41": "bytes do not hold",  # a 1 behind the last code
        b"\x02\x02\x00\x00\x00\x40\x00": "bytes do not hold",
        b"\x01\x01\xff\xff\xff\xff\x7f": "2\\*\\*31",
    }.items():
        with pytest.raises(FileFormatError, match=why):
            huffman_decode(blob)


BOMBS = {
    "huffman, one symbol": (huffman_decode, bits.put_varint(2**60) + b"\x01\x00"),
    "huffman, alphabet": (
        huffman_decode,
        bits.put_varint(2**25) + bits.put_varint(2**25) + b"\x00",
    ),
    "range": (range_decode, range_encode(np.zeros(2**25 + 1, np.int8))),
    "matrix": (range_decode_matrix, range_encode_matrix(np.zeros((2, 2**24 + 1), np.int8))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name):
    decode, blob = BOMBS[name]
    assert len(blob) < 40
    with pytest.raises(FileFormatError):
        decode(blob)


# -- Huffman ---------------------------------------------------------------------------------------


def law_near_entropy(lengths_of, counts):
    """H <= mean length < H + 1."""
    counts = np.array(counts)
    total = counts.sum()
    mean = int((lengths_of(counts) * counts).sum()) / total
    entropy_ = -math.fsum(c / total * math.log2(c / total) for c in counts.tolist())
    # Each product is within 4 units of 2**-53 of its value, of which none is above 0.54.
    slack = 4 * 0.54 * len(counts) * 2.0**-53
    assert entropy_ - slack <= mean < entropy_ + 1 + slack


def law_complete_prefix_code(lengths_of, counts):
    """Kraft's equality, in integers."""
    lengths = lengths_of(np.array(counts)).tolist()
    assert all(1 <= n <= huffman.LONGEST for n in lengths)
    assert sum(2 ** (huffman.LONGEST - n) for n in lengths) == 2**huffman.LONGEST


def law_optimal(lengths_of, counts):
    """No complete code is shorter: all of them are tried, the rarest symbols longest."""
    best = min(
        sum(n * c for n, c in zip(sorted(code, reverse=True), sorted(counts), strict=True))
        for code in complete_codes(len(counts))
    )
    assert int((lengths_of(np.array(counts)) * np.array(counts)).sum()) == best


def complete_codes(k):
    """The lengths of every prefix code of k symbols: a leaf of a smaller one becomes two."""
    codes = {(1, 1)}
    for _ in range(k - 2):
        codes = {
            tuple(sorted((*code[:i], *code[i + 1 :], code[i] + 1, code[i] + 1)))
            for code in codes
            for i in range(len(code))
        }
    return codes


frequencies = st.lists(st.integers(1, 50) | st.integers(1, 10**6), min_size=2, max_size=7)


@given(frequencies)
def test_code_lengths_are_optimal(counts):
    law_optimal(huffman.code_lengths, counts)
    law_complete_prefix_code(huffman.code_lengths, counts)
    law_near_entropy(huffman.code_lengths, counts)


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=300))
def test_mean_length_is_within_a_bit_of_the_entropy(counts):
    law_complete_prefix_code(huffman.code_lengths, counts)
    law_near_entropy(huffman.code_lengths, counts)


def test_codes_are_limited_to_32_bits():
    fibonacci = [1, 1]
    while len(fibonacci) < 60:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    law_complete_prefix_code(huffman.code_lengths, fibonacci)
    law_near_entropy(huffman.code_lengths, fibonacci)
    assert huffman.code_lengths(np.array(fibonacci[:33])).max() == 32  # as deep as it may be


def slow_huffman_decode(blob):
    """The format as FORMAT.md has it, bit by bit."""
    reader = bits.ByteReader(blob)
    count = reader.varint()
    if count == 0:
        return []
    size, symbol = reader.varint(), bits.unzigzag(reader.varint())
    if size == 1:
        return [symbol] * count
    fields = []
    for n in (size - 1, size):
        width = reader.varint()
        text = "".join(f"{byte:08b}" for byte in reader.take(-(-n * width // 8)))
        fields.append([int("0" + text[i * width : (i + 1) * width], 2) + 1 for i in range(n)])
    alphabet = [symbol]
    for gap in fields[0]:
        alphabet.append(alphabet[-1] + gap)
    codes, code, last = {}, 0, 0
    for length, symbol in sorted(zip(fields[1], alphabet, strict=True)):
        code <<= length - last
        codes[f"{code:0{length}b}"] = symbol
        code, last = code + 1, length
    text, found, start = "".join(f"{byte:08b}" for byte in reader.take(reader.left)), [], 0
    for end in range(len(text) + 1):
        if len(found) < count and text[start:end] in codes:
            found.append(codes[text[start:end]])
            start = end
    assert "1" not in text[start:]
    assert len(text) - start < 8
    return found


def law_format(encode, symbols):
    assert slow_huffman_decode(encode(symbols)) == symbols.tolist()


@given(integers())
def test_huffman_blobs_are_as_specified(symbols):
    law_format(huffman_encode, symbols)


def test_huffman_over_several_blocks():
    rng = np.random.default_rng(0)
    symbols = np.rint(3 * rng.standard_normal(3 * huffman.BLOCK + 17)).astype(np.int64)
    blob = huffman_encode(symbols)
    assert huffman_decode(blob).tolist() == symbols.tolist()
    counts = np.unique(symbols, return_counts=True)[1]
    lengths = huffman.code_lengths(counts)
    assert len(blob) <= -(-int((lengths * counts).sum()) // 8) + 40


# -- the range coder -------------------------------------------------------------------------------


class IdealCoder:
    """Adds up what a perfect coder would pay for the same decisions."""

    def __init__(self):
        self.bits = 0.0

    def code(self, context, bit):
        self.bits -= math.log2(context[bool(bit)] / sum(context))
        range_coder.RangeEncoder().code(context, bit)  # learns as the real one does
        return bit

    def code_uniform(self, value, width):
        self.bits += width
        return value


def decisions(max_size=300):
    """Contexts with decisions, most often the likely one; and uniform numbers with their widths."""
    likely = st.tuples(st.integers(0, 2), st.sampled_from([0] * 9 + [1]))
    uniform = st.integers(1, 64).flatmap(lambda w: st.tuples(st.just(-w), st.integers(0, 2**w - 1)))
    return st.lists(st.one_of(likely, likely, likely, uniform), max_size=max_size)


def run_decisions(coder, sequence):
    contexts = [new_context() for _ in range(3)]
    return [
        coder.code_uniform(value, -which) if which < 0 else coder.code(contexts[which], value)
        for which, value in sequence
    ]


def law_decisions_survive(encoder, sequence):
    coder, ideal = encoder(), IdealCoder()
    assert run_decisions(coder, sequence) == [value for _, value in sequence]
    blob = coder.finish()
    decoder = RangeDecoder(blob)
    hidden = [(which, 0) for which, _ in sequence]
    # Not in the assertion: pytest would take minutes to print how two such lists differ.
    survived = run_decisions(decoder, hidden) == [value for _, value in sequence]
    assert survived
    decoder.finish()
    run_decisions(ideal, sequence)
    # The range is at least 2**24 and is rounded down once a cut. So a decision of probability
    # 2**-k, k <= 17, costs at most log2(e) * 2**(k - 24) bits more than k; a uniform piece of
    # s <= 16 bits at most log2(e) * 2**(s - 24) more than s: less than a part in 2**10. A byte
    # ends it.
    assert len(blob) <= ideal.bits * (1 + 2**-10) / 8 + 1


@given(decisions())
def test_decisions_survive(sequence):
    law_decisions_survive(RangeEncoder, sequence)


def many_decisions():
    """Enough of them for carries, halved counts, and runs of bytes of 255."""
    rng = np.random.default_rng(0)
    rare = (rng.random(80_000) < 0.001).astype(int).tolist()
    even = rng.integers(0, 2, 20_000).tolist()
    return [(0, b) for b in rare] + [(1, b) for b in even] + [(-32, 2**32 - 1)] * 300


def test_many_decisions_survive():
    law_decisions_survive(RangeEncoder, many_decisions())


@given(st.binary(max_size=12), st.integers(0, 60))
def test_bytes_that_decode_are_those_that_encode(blob, count):
    """No two files say the same: what the decoder accepts, the encoder writes."""
    decoder = RangeDecoder(blob)
    try:
        sequence = [(0, decoder.code(context, 0)) for context in [new_context()] * count]
        decoder.finish()
    except FileFormatError:
        return
    encoder = RangeEncoder()
    run_decisions(encoder, sequence)
    assert encoder.finish() == blob


def test_a_decoder_works_no_more_than_it_may():
    decoder = RangeDecoder(b"", max_work=1000)
    context = new_context()
    for _ in range(1000):
        assert decoder.code(context, 0) == 0
    with pytest.raises(FileFormatError, match="more than 1000 decisions"):
        decoder.code(context, 0)


@given(st.lists(st.integers(0, 300) | st.integers(0, 2**65 - 2), max_size=30))
def test_numbers_survive(values):
    coder, numbers = RangeEncoder(), Contexts()
    for value in values:
        assert code_number(coder, numbers, value) == value
    decoder, numbers = RangeDecoder(coder.finish()), Contexts()
    assert [code_number(decoder, numbers, 0) for _ in values] == values
    decoder.finish()


def law_near_ideal(encode, symbols):
    """Within 2 % and 16 bytes of what the adaptive model promises."""
    ideal = IdealCoder()
    if symbols.ndim == 1:
        entropy.code_sequence(ideal, symbols.size, symbols)
    else:
        matrices.code_matrix(ideal, symbols.shape, symbols)
    assert len(encode(symbols)) <= 1.02 * ideal.bits / 8 + 16


@given(integers(1))
def test_a_sequence_takes_its_ideal_length(symbols):
    law_near_ideal(range_encode, symbols)


@given(integers(2))
def test_a_matrix_takes_its_ideal_length(matrix):
    law_near_ideal(range_encode_matrix, matrix)


def sparse_matrix(rows=784, columns=300):
    """1.5 % other than zero, in rows and columns of which many are dead."""
    rng = np.random.default_rng(0)
    chance = np.outer(rng.random(rows) < 0.5, rng.random(columns) < 0.4) * 0.075
    return np.where(rng.random((rows, columns)) < chance, rng.integers(-3, 4, (rows, columns)), 0)


def test_large_arrays_take_their_ideal_length():
    matrix = sparse_matrix()
    law_near_ideal(range_encode_matrix, matrix)
    law_near_ideal(range_encode, matrix.ravel())
    assert (range_decode_matrix(range_encode_matrix(matrix)) == matrix).all()
    # Dead rows and columns are what the matrix model is for.
    assert len(range_encode_matrix(matrix)) < 0.85 * len(range_encode(matrix.ravel()))


def test_the_model_is_within_its_promise_of_the_entropy():
    """Independent symbols: what is learned costs no more than (log2(n) / 2 + 1) bits a context."""
    symbols = np.minimum(np.random.default_rng(0).geometric(0.4, 50_000) - 1, 15)
    counts = Counter(symbols.tolist()).values()
    bits_ = sum(-c * math.log2(c / symbols.size) for c in counts)
    contexts = 2 * (5 + 31) + 5 + 31 + 10  # runs, distances, numbers at the head: length and digits
    promise = bits_ + contexts * (math.log2(symbols.size) / 2 + 1)
    assert bits_ / 8 <= len(range_encode(symbols)) <= promise / 8 * 1.02 + 16


def test_neighbours_pay():
    """The same entries, drawn with a pen or strewn about."""
    drawn = np.zeros((28, 28, 20), int)
    for unit in range(20):
        drawn[4 + unit // 2 : 20, 6 + unit % 7, unit] = 1 + unit % 2
    drawn = drawn.reshape(784, 20)
    strewn = np.random.default_rng(0).permutation(drawn.ravel()).reshape(784, 20)
    assert len(range_encode_matrix(drawn)) < 0.6 * len(range_encode_matrix(strewn))


SAME_BYTES = {
    "huffman": (
        huffman_encode,
        np.arange(40) % 7 - 2,
        "2807030002aa684e5374e5374e5374e5374e5374e500",
    ),
    "range": (range_encode, np.arange(40) % 7 - 2, "f938218696ae5387c5e7cf89df2278359c51e481"),
    "matrix": (range_encode_matrix, (np.arange(40) % 7 == 0).reshape(8, 5) * 3, "e30a7c087df41d9f"),
}


@pytest.mark.parametrize("name", SAME_BYTES)
def test_the_bytes_are_the_same_on_every_machine(name):
    encode, symbols, expected = SAME_BYTES[name]
    assert encode(symbols).hex() == expected


# -- bits ------------------------------------------------------------------------------------------


packable = st.integers(0, 64).flatmap(
    lambda width: st.tuples(st.just(width), st.lists(st.integers(0, 2**width - 1)))
)


@given(packable)
def test_packed_bits_are_the_binary_digits(p):
    width, values = p
    packed = bits.pack_bits(np.array(values, np.uint64), width)
    text = "".join(f"{v:0{width}b}" for v in values) if width else ""
    assert packed == bytes(int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8))
    assert bits.unpack_bits(packed, len(values), width).tolist() == values


def test_packing_in_blocks():
    values = np.arange(2 * bits.BLOCK + 3) % 1000
    packed = bits.pack_bits(values, 10)
    assert len(packed) == bits.packed_size(values.size, 10)
    assert bits.unpack_bits(packed, values.size, 10).tolist() == values.tolist()


@pytest.mark.parametrize("blob", [b"\x29", b"\x29\x80\x00", b"\x29\x81"])
def test_packed_bits_of_another_length_are_refused(blob):
    with pytest.raises(FileFormatError):
        bits.unpack_bits(blob, 3, 3)


@given(st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63))
def test_varint_and_zigzag(value, signed):
    reader = bits.ByteReader(bits.put_varint(value) + b"?")
    assert (reader.varint(), reader.left) == (value, 1)
    assert bits.unzigzag(bits.zigzag(signed)) == signed


# -- planted: wrong implementations that the laws catch --------------------------------------------


class NoCarry(RangeEncoder):
    """Forgets to carry into the bytes that are already written."""

    def _widen(self):
        self._low &= range_coder.WHOLE - 1
        super()._widen()


class NoLearning(RangeEncoder):
    """Believes for ever that 0 and 1 are as likely; not what the decoder does."""

    def code(self, context, bit):
        return super().code([1, 1], bit)


def shannon_lengths(counts):
    """Shannon's code: within a bit of the entropy, but not optimal."""
    return np.ceil(-np.log2(counts / counts.sum())).astype(int).clip(1)


def off_by_one_order(symbols):
    """Canonical codes in the order of the symbols alone."""
    blob = bytearray(huffman_encode(symbols))
    blob[-1] ^= 128
    return bytes(blob)


def padded(symbols):
    return range_encode(symbols) + bytes(20)


PLANTED = {
    "one symbol decodes to nothing": (
        partial(law_round_trip, symbols=np.array([3, 3])),
        (huffman_encode, lambda blob: huffman_decode(blob)[:0]),
    ),
    "the last symbol is lost": (
        partial(law_round_trip, symbols=np.array([1, 2, 3])),
        (range_encode, lambda blob: range_decode(blob)[:-1]),
    ),
    "the dtype is narrowed": (
        partial(law_round_trip, symbols=np.array([1, 2, 3])),
        (range_encode, lambda blob: range_decode(blob).astype(np.int32)),
    ),
    "rows and columns swapped": (
        partial(law_round_trip, symbols=np.arange(6).reshape(2, 3)),
        (range_encode_matrix, lambda blob: range_decode_matrix(blob).T),
    ),
    "no carry": (partial(law_decisions_survive, sequence=many_decisions()), NoCarry),
    "no learning": (partial(law_decisions_survive, sequence=[(0, 0)] * 99 + [(0, 1)]), NoLearning),
    "Shannon's lengths are not optimal": (partial(law_optimal, counts=[1, 1, 6]), shannon_lengths),
    "Shannon's lengths are not complete": (
        partial(law_complete_prefix_code, counts=[1, 1, 6]),
        shannon_lengths,
    ),
    "a bit too many for each": (
        partial(law_near_entropy, counts=[1, 1, 6]),
        lambda counts: huffman.code_lengths(counts) + 1,
    ),
    "a bit too few": (
        partial(law_near_entropy, counts=[1, 1, 1, 1]),
        lambda counts: huffman.code_lengths(counts) - 1,
    ),
    "another code than the canonical": (
        partial(law_format, symbols=np.array([1, 1, 2, 3])),
        off_by_one_order,
    ),
    "longer than it need be": (partial(law_near_ideal, symbols=np.zeros(5, int)), padded),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_wrong_codecs_are_caught(name):
    law, wrong = PLANTED[name]
    with pytest.raises(AssertionError):
        law(wrong)
