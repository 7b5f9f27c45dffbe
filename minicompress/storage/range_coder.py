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

Encoder and decoder have the same methods. The decoder ignores the value that it is given and
returns the value that it reads. So each model is one function that codes *and* decodes, and the two
directions cannot disagree.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Protocol, TypeAlias

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


class Coder(Protocol):
    """What a model may call, of an encoder or a decoder."""

    def code(self, context: Context, bit: int) -> int:
        """Code a decision; the context learns it."""

    def code_uniform(self, value: int, width: int) -> int:
        """Code an integer of `width` bits, all equally likely."""


class RangeEncoder:
    """Decisions in, bytes out.

    Attributes
    ----------
    Parameters
    ----------
    work : int
        Number of decisions coded so far; decoding takes time in proportion.

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
        total = zeros + ones
        split = self._range * zeros // total
        if bit:
            self._low += split
            self._range -= split
            context[1] = ones + 2
        else:
            self._range = split
            context[0] = zeros + 2
        if total >= FULL:
            context[:] = (context[0] + 1) // 2, (context[1] + 1) // 2
        self.work += 1
        while self._range < NARROW:
            self._widen()
        return bit

    def copy(self) -> RangeEncoder:
        """An encoder in the same state, which goes on independently."""
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


class RangeDecoder:
    """Bytes in, decisions out; the contexts must be those of the encoder.

    Parameters
    ----------
    blob : bytes
    max_work : int, optional
        More decisions than this are a `FileFormatError`. Very likely decisions cost almost no bits,
        so a few bytes could otherwise keep a decoder busy for ever.
    """

    def __init__(self, blob: bytes, max_work: int | None = None) -> None:
        self.work = 0
        self._max_work = float("inf") if max_work is None else max_work
        self._blob, self._place, self._range = blob, 4, WHOLE
        self._code = int.from_bytes(blob[:4].ljust(4, b"\0"), "big")  # the number minus low

    def code(self, context: Context, bit: int) -> int:
        """Read a decision and ignore `bit`; the context learns it."""
        zeros, ones = context
        total = zeros + ones
        split = self._range * zeros // total
        if self._code >= split:
            bit = 1
            self._code -= split
            self._range -= split
            context[1] = ones + 2
        else:
            bit = 0
            self._range = split
            context[0] = zeros + 2
        if total >= FULL:
            context[:] = (context[0] + 1) // 2, (context[1] + 1) // 2
        self.work += 1
        if self.work > self._max_work:
            raise FileFormatError(f"{len(self._blob)} bytes hold too many decisions")
        while self._range < NARROW:
            self._widen()
        return bit

    def code_uniform(self, value: int, width: int) -> int:
        """Read an integer of `width` bits and ignore `value`."""
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
        """Check that the bytes end here, exactly as the encoder ends them."""
        extra = len(self._blob) > self._place - 3 or self._blob.endswith(b"\0")
        if extra or self._code >= NARROW:
            raise FileFormatError("the bytes do not end where their decisions do")

    def _widen(self) -> None:
        byte = self._blob[self._place] if self._place < len(self._blob) else 0
        self._code = self._code << 8 | byte
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
    length, wanted = 0, value.bit_length() - 1
    while length < LONGEST - 1 and coder.code(numbers[length], length < wanted):
        length += 1
    prefix = 1  # the highest bits, as far as they are known
    for shift in range(length - 1, max(length - LEARNED_BITS, 0) - 1, -1):
        context = numbers[length << LEARNED_BITS | prefix]  # larger than any length
        prefix = prefix << 1 | coder.code(context, value >> shift & 1)
    rest = length - LEARNED_BITS
    if rest > 0:
        prefix = prefix << rest | coder.code_uniform(value & (1 << rest) - 1, rest)
    return prefix - 1


def _shifts(width: int) -> range:
    """Where the pieces of 16 bits of an integer begin, the highest first."""
    return range((width - 1) // 16 * 16, -1, -16)
