"""The same networks in integers alone: codes, multipliers and shifts."""

from minicompress.integer.conversion import to_integer
from minicompress.integer.model import IntegerModel
from minicompress.integer.requantization import quantize_multiplier, requantize

__all__ = [
    "IntegerModel",
    "quantize_multiplier",
    "requantize",
    "to_integer",
]
