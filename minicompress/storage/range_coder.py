"""An adaptive binary range coder: it codes decisions (0 or 1) with integers only.

The coder keeps an interval of integers, from `low` to `low + range`. Each decision cuts it in two,
in the proportion of the zeros and ones that were seen before *in the same context*, and keeps the
part of the decision taken. At the end any number in the interval stands for all decisions. A
decision of probability p costs close to -log2(p) bits.

- The interval is widened byte by byte, as in Martin, *Range encoding: an algorithm for removing
  redundancy from a digitised message* (1979). Decisions are binary and learned one by one, and a
  carry goes into the bytes already written.
- A context is a list [zeros, ones]. It begins with 1 each and gains 2 for every decision, which is
  the estimate (n1 + 1/2) / (n + 1) of Krichevsky and Trofimov (1981). A model chooses the context
  of each decision; the better it predicts, the fewer bytes are written.

Encoder and decoder are one machine, `Coder`: only where a decision comes from, and what happens to
a byte, differ. The decoder ignores the value that it is given and returns the value that it reads.
So each model is one function that codes *and* decodes, and the two directions cannot disagree.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Hashable
from typing import TypeAlias

from minicompress.errors import CompressionError, FileFormatError

Context: TypeAlias = list[int]

# The interval begins with 2**32 numbers, and is widened by a byte whenever it has fewer than 2**24.
WHOLE, NARROW = 1 << 32, 1 << 24
# When the counts of a context add up to this, they are halved.
FULL = 1 << 16
# Below the highest bit of a number, this many bits have contexts; the rest are coded as uniform.
LEARNED_BITS = 8
# The most bits that a number plus 1 has.
LONGEST = 65
MOST = 2**LONGEST - 2


def new_context() -> Context:
    """A context that has seen nothing."""
    return [1, 1]


class Coder:
    """What encoder and decoder share: the interval, and how each decision cuts it.

    Attributes
    ----------
    reads : bool
        Whether decisions are read. Then the values that are given are ignored, and `_low` is
        counted from the number that is read, so it is never positive.
    work : int
        Decisions coded so far; decoding takes time in proportion.
    """

    def __init__(self, reads: bool, max_work: int = sys.maxsize) -> None:
        self.reads, self.work, self._max_work = reads, 0, max_work
        self._low, self._range = 0, WHOLE

    def code(self, context: Context, bit: int) -> int:
        """Code a decision; the context learns it."""
        zeros, ones = context
        total, interval = zeros + ones, self._range
        split = interval * zeros // total
        if self.reads:
            bit = self._low + split <= 0
            if self.work >= self._max_work:
                raise FileFormatError(f"the bytes hold more than {self._max_work} decisions")
        if bit:
            self._low += split
            interval -= split
            context[1] = ones + 2
        else:
            interval = split
            context[0] = zeros + 2
        if total >= FULL:
            context[:] = (context[0] + 1) // 2, (context[1] + 1) // 2
        self._range = interval
        self.work += 1
        while interval < NARROW:
            self._widen()
            interval = self._range
        return bit

    def code_uniform(self, value: int, width: int) -> int:
        """Code an integer of `width` bits, all equally likely: pieces of 16, the highest first."""
        result = 0
        for shift in range((width - 1) // 16 * 16, -1, -16):
            size = min(width - shift, 16)
            self._range >>= size
            piece = -self._low // self._range if self.reads else value >> shift & (1 << size) - 1
            if piece >> size:
                raise FileFormatError("the bytes are not what a range coder writes")
            self._low += self._range * piece
            result |= piece << shift
            self.work += 1
            while self._range < NARROW:
                self._widen()
        return result

    def _widen(self) -> None:
        """Widen the interval by a byte."""
        raise NotImplementedError


class RangeEncoder(Coder):
    """Decisions in, bytes out.

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
        super().__init__(reads=False)
        self._out = bytearray()

    def copy(self) -> RangeEncoder:
        """An encoder in the same state, which goes on independently."""
        other = copy.copy(self)
        other._out = self._out.copy()
        return other

    @property
    def bits(self) -> int:
        """The number of bits so far, rounded up."""
        return 8 * len(self._out) + 33 - self._range.bit_length()

    def finish(self) -> bytes:
        """The bytes of one number in the interval, without the zeros at its end."""
        self._low += NARROW - 1
        self._widen()
        return bytes(self._out.rstrip(b"\0"))

    def _widen(self) -> None:
        """Write the top byte, after carrying an overflow into the bytes before it."""
        if self._low >= WHOLE:
            place = len(self._out) - 1
            while self._out[place] == 255:
                self._out[place] = 0
                place -= 1
            self._out[place] += 1
        self._out.append(self._low >> 24 & 255)
        self._low = (self._low & NARROW - 1) << 8
        self._range <<= 8


class RangeDecoder(Coder):
    """Bytes in, decisions out; the contexts must be those of the encoder.

    Parameters
    ----------
    blob : bytes
    max_work : int, optional
        More decisions than this are a `FileFormatError`. Very likely decisions cost almost no bits,
        so a few bytes could otherwise keep a decoder busy for ever.
    """

    def __init__(self, blob: bytes, max_work: int = sys.maxsize) -> None:
        super().__init__(reads=True, max_work=max_work)
        self._blob, self._place = blob, 4
        self._low = -int.from_bytes(blob[:4].ljust(4, b"\0"), "big")

    def finish(self) -> None:
        """Check that the bytes end here, exactly as the encoder ends them."""
        extra = len(self._blob) > self._place - 3 or self._blob.endswith(b"\0")
        if extra or -self._low >= NARROW:
            raise FileFormatError("the bytes do not end where their decisions do")

    def _widen(self) -> None:
        """Read a byte; behind the end come zeros."""
        byte = self._blob[self._place] if self._place < len(self._blob) else 0
        self._low = (self._low << 8) - byte
        self._range <<= 8
        self._place += 1


class Contexts(dict[Hashable, Context]):
    """Contexts by the name of their decisions; a name that was not used before has a new one."""

    def __missing__(self, name: Hashable) -> Context:
        self[name] = context = new_context()
        return context

    def copy(self) -> Contexts:
        """The same counts, in contexts that learn on their own."""
        return Contexts({name: [*context] for name, context in self.items()})


def code_number(coder: Coder, numbers: Contexts, value: int) -> int:
    """Code an integer from 0 to ``2**65 - 2``: how many bits it has, then its bits.

    The number of bits of ``value + 1`` is coded in unary, with one decision a bit, then the bits
    below the highest one. This is the gamma code of Elias (1975). Every decision has a context of
    its own, so any distribution of small numbers is learned. `numbers` holds the contexts of one
    kind of number. A larger integer is a CompressionError.
    """
    if value > MOST:
        raise CompressionError(f"numbers up to {MOST} can be stored, not {value}")
    value += 1
    code, length, wanted = coder.code, 0, value.bit_length() - 1
    while length < LONGEST - 1 and code(numbers[length], length < wanted):
        length += 1
    prefix = 1  # the highest bits, as far as they are known
    for shift in range(length - 1, max(length - LEARNED_BITS, 0) - 1, -1):
        context = numbers[length << LEARNED_BITS | prefix]  # larger than any length
        prefix = prefix << 1 | code(context, value >> shift & 1)
    rest = length - LEARNED_BITS
    if rest > 0:
        prefix = prefix << rest | coder.code_uniform(value & (1 << rest) - 1, rest)
    return prefix - 1
