"""An adaptive binary range coder: decisions at the price of their surprise, in integers only.

The coder keeps an interval of integers. Each decision, 0 or 1, cuts it in the proportion in which
the two were seen before *in the same context*, and keeps the part that belongs to the one taken.
In the end any number of the interval stands for all decisions. What is likely cuts off little, so
a decision of probability p costs close to -log2(p) bits (Martin, 1979).

A context is a list [zeros, ones]: 1 each to begin with, and 2 more for every decision seen, which
is the estimate (n1 + 1/2) / (n + 1) of Krichevsky and Trofimov (1981). A model decides which
context a decision belongs to; the better it guesses, the fewer bytes.

Encoder and decoder have the same methods, and the decoder ignores the value that it is given and
returns the one that it reads. So a model is written once, as a function that codes, and serves both
directions: it cannot disagree with itself.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Protocol, TypeAlias, TypeVar

from minicompress.errors import CompressionError, FileFormatError

Context: TypeAlias = list[int]
Name = TypeVar("Name")

# The interval has 32 bits and is widened by a byte whenever fewer than 24 of them are left.
WHOLE, NARROW = 1 << 32, 1 << 24
# Where the counts of a context add up to this they are halved: it stays a 16-bit estimate.
FULL = 1 << 16
# The bits of a number below its highest one have contexts of their own up to this many.
LEARNED_BITS = 8
# No number has more bits than this.
LONGEST = 65
MOST = 2**LONGEST - 2


def new_context() -> Context:
    """A context that has seen nothing."""
    return [1, 1]


class Coder(Protocol):
    """What an encoder and a decoder have in common, and a model may use."""

    def code(self, context: Context, bit: int) -> int:
        """Code a decision; the context learns it."""

    def code_uniform(self, value: int, width: int) -> int:
        """Code an integer of `width` bits, all equally likely."""


class RangeEncoder:
    """Decisions in, bytes out.

    Attributes
    ----------
    work : int
        How many decisions were coded: what decoding will take in time.

    Examples
    --------
    >>> encoder, context = RangeEncoder(), new_context()
    >>> for bit in [0] * 100 + [1] + [0] * 100:
    ...     _ = encoder.code(context, bit)
    >>> blob = encoder.finish()
    >>> len(blob)
    2
    >>> decoder, context = RangeDecoder(blob), new_context()
    >>> [i for i in range(201) if decoder.code(context, 0)]
    [100]
    >>> decoder.finish()
    """

    def __init__(self) -> None:
        self.work = 0
        self._low, self._range, self._out = 0, WHOLE, bytearray()

    def code(self, context: Context, bit: int) -> int:
        """Code a decision; the context learns it."""
        zeros, ones = context
        split = self._range * zeros // (zeros + ones)
        if bit:
            self._low += split
            self._range -= split
            context[1] = ones + 2
        else:
            self._range = split
            context[0] = zeros + 2
        if zeros + ones >= FULL:
            context[:] = (context[0] + 1) // 2, (context[1] + 1) // 2
        self.work += 1
        while self._range < NARROW:
            self._widen()
        return bit

    def copy(self) -> RangeEncoder:
        """An encoder that goes on from here by itself."""
        other = copy.copy(self)
        other._out = self._out.copy()
        return other

    def code_uniform(self, value: int, width: int) -> int:
        """Code an integer of `width` bits, all equally likely."""
        for shift in _shifts(width):
            size = min(width - shift, 16)
            self._range >>= size
            self._low += self._range * (value >> shift & (1 << size) - 1)
            self.work += 1
            while self._range < NARROW:
                self._widen()
        return value

    @property
    def bits(self) -> int:
        """How many bits there are so far."""
        return 8 * len(self._out) + 33 - self._range.bit_length()

    def finish(self) -> bytes:
        """All bytes: those of a number in the interval, without the zeros at its end."""
        self._low += NARROW - 1
        self._widen()
        return bytes(self._out.rstrip(b"\0"))

    def _widen(self) -> None:
        """Write the top byte, which is settled but for a carry."""
        if self._low >= WHOLE:
            place = len(self._out) - 1
            while self._out[place] == 255:
                self._out[place] = 0
                place -= 1
            self._out[place] += 1
        self._out.append(self._low >> 24 & 255)
        self._low = (self._low & NARROW - 1) << 8
        self._range <<= 8


class RangeDecoder:
    """Bytes in, decisions out, in the contexts in which they were coded.

    Parameters
    ----------
    blob : bytes
    max_work : int, optional
        More decisions than this are a `FileFormatError`: what is likely enough costs next to no
        bits, so a few bytes could keep a decoder busy for ever.
    """

    def __init__(self, blob: bytes, max_work: int | None = None) -> None:
        self.work = 0
        self._max_work = float("inf") if max_work is None else max_work
        self._blob, self._place, self._range = blob, 4, WHOLE
        self._code = int.from_bytes(blob[:4].ljust(4, b"\0"), "big")  # the number minus low

    def code(self, context: Context, bit: int) -> int:
        """Read a decision, whatever `bit` is; the context learns it."""
        zeros, ones = context
        split = self._range * zeros // (zeros + ones)
        if self._code >= split:
            bit = 1
            self._code -= split
            self._range -= split
            context[1] = ones + 2
        else:
            bit = 0
            self._range = split
            context[0] = zeros + 2
        if zeros + ones >= FULL:
            context[:] = (context[0] + 1) // 2, (context[1] + 1) // 2
        self.work += 1
        if self.work > self._max_work:
            raise FileFormatError(f"{len(self._blob)} bytes hold too many decisions")
        while self._range < NARROW:
            self._widen()
        return bit

    def code_uniform(self, value: int, width: int) -> int:
        """Read an integer of `width` bits, whatever `value` is."""
        value = 0
        for shift in _shifts(width):
            size = min(width - shift, 16)
            self._range >>= size
            digit, self._code = divmod(self._code, self._range)
            if digit >> size:
                raise FileFormatError("the bytes are not what a range coder writes")
            value |= digit << shift
            self.work += 1
            while self._range < NARROW:
                self._widen()
        return value

    def finish(self) -> None:
        """The bytes must end here, exactly as the encoder ends them."""
        extra = len(self._blob) > self._place - 3 or self._blob.endswith(b"\0")
        if extra or self._code >= NARROW:
            raise FileFormatError("the bytes do not end where their decisions do")

    def _widen(self) -> None:
        byte = self._blob[self._place] if self._place < len(self._blob) else 0
        self._code = self._code << 8 | byte
        self._range <<= 8
        self._place += 1


class Numbers:
    """What was learned about numbers of one kind: a context for every decision about them."""

    def __init__(self) -> None:
        self.longer: defaultdict[int, Context] = defaultdict(new_context)
        self.digits: defaultdict[int, Context] = defaultdict(new_context)

    def copy(self) -> Numbers:
        """The same, to learn by itself from here on."""
        other = Numbers()
        other.longer, other.digits = copied(self.longer), copied(self.digits)
        return other


def copied(contexts: defaultdict[Name, Context]) -> defaultdict[Name, Context]:
    """Contexts that learn by themselves from here on."""
    return defaultdict(new_context, {name: [*context] for name, context in contexts.items()})


def code_number(coder: Coder, numbers: Numbers, value: int) -> int:
    """Code an integer from 0 to ``2**65 - 2``: how many bits it has, then its bits.

    The bits of ``value + 1`` are counted in unary, a decision each (Elias's gamma code), and every
    decision has a context of its own, so that any distribution of small numbers is learned. A
    larger one is a CompressionError.
    """
    if value > MOST:
        raise CompressionError(f"numbers up to {MOST} can be stored, not {value}")
    value += 1
    length, wanted = 0, value.bit_length() - 1
    while length < LONGEST - 1 and coder.code(numbers.longer[length], length < wanted):
        length += 1
    prefix = 1  # the highest bits, as far as they are known
    for shift in range(length - 1, max(length - LEARNED_BITS, 0) - 1, -1):
        context = numbers.digits[length << LEARNED_BITS | prefix]
        prefix = prefix << 1 | coder.code(context, value >> shift & 1)
    rest = length - LEARNED_BITS
    if rest > 0:
        prefix = prefix << rest | coder.code_uniform(value & (1 << rest) - 1, rest)
    return prefix - 1


def _shifts(width: int) -> range:
    """Where to cut an integer into pieces of 16 bits, highest first."""
    return range((width - 1) // 16 * 16, -1, -16)
