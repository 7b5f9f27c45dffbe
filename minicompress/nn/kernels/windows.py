"""Where the windows of a convolution or a pooling lie, and how the images are cut into blocks.

Sizes are (height, width). Work is done in blocks: some whole images, or some rows of one large
image. So a block stays in the cache, and the memory does not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minicompress.arrays import Array, DType, as_int, ceil_div, choice, float_array, same_dtype
from minicompress.errors import CompressionError

Pair: TypeAlias = int | tuple[int, int]
Pads: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
Padding: TypeAlias = str | int | tuple[int, int] | Pads

# Of strides, windows and the like: products of these still fit in 64 bits.
LONGEST = 2**31 - 1
BLOCK_BYTES = 4 << 20
KEPT_BYTES = 31 << 20


class Geometry(NamedTuple):
    """Where all windows lie, for one size of image: `geometry` makes it.

    Convolutions, poolings, layers, integer layers, exports and certificates all read this value.

    kernel, stride, dilation, output : (height, width)
    pads : ((top, bottom), (left, right))
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: Pads
    output: tuple[int, int]

    def needed(self, rows: slice) -> tuple[int, int]:
        """The first row of the image that these rows of the output read, and the first after them.

        Rows of padding count too: those above the image are negative.
        """
        first = rows.start * self.stride[0] - self.pads[0][0]
        extent = (self.kernel[0] - 1) * self.dilation[0] + 1
        return first, first + (rows.stop - rows.start - 1) * self.stride[0] + extent


def geometry(
    input_hw: Any,
    kernel_hw: Any,
    stride: Pair = 1,
    padding: Padding = "valid",
    dilation: Pair = 1,
    *,
    ceil_mode: bool = False,
) -> Geometry:
    """Where the windows of a convolution or a pooling lie, checked.

    ``output = floor((n + before + after - dilation * (k - 1) - 1) / stride) + 1`` on each axis.

    Parameters
    ----------
    input_hw, kernel_hw : (int, int)
        Height and width, at least 1.
    stride, dilation : int or (int, int)
    padding : "valid", "same", int, (int, int) or ((int, int), (int, int))
        As for `resolve_padding`.
    ceil_mode : bool
        Round the division up, and not down, if the last window then starts before the padding at
        the end. What it reads beyond the padded image is more padding at the end.

    Raises
    ------
    CompressionError
        The (dilated) kernel is larger than the padded image, or an argument is not as above.

    Examples
    --------
    >>> geometry((28, 28), (3, 3)).output, geometry((28, 28), (3, 3), 3, "same").output
    ((26, 26), (10, 10))
    """
    sizes, kernels = pair(input_hw, "input_hw", 1), pair(kernel_hw, "kernel_hw", 1)
    strides, dilations = pair(stride, "stride", 1), pair(dilation, "dilation", 1)
    pads = resolve_padding(padding, sizes, kernels, strides, dilations)
    padded = [n + sum(p) for n, p in zip(sizes, pads, strict=True)]
    extent = [(k - 1) * d + 1 for k, d in zip(kernels, dilations, strict=True)]
    if extent[0] > padded[0] or extent[1] > padded[1]:
        raise CompressionError(
            f"the kernel covers {extent[0]} x {extent[1]} pixels, more than the padded image's "
            f"{padded[0]} x {padded[1]}"
        )
    output = [(n - e) // s + 1 for n, e, s in zip(padded, extent, strides, strict=True)]
    if ceil_mode:
        for axis, (n, s, (before, after)) in enumerate(zip(sizes, strides, pads, strict=True)):
            if output[axis] * s < n + before and (padded[axis] - extent[axis]) % s:
                beyond = output[axis] * s + extent[axis] - padded[axis]
                pads = (*pads[:axis], (before, after + beyond), *pads[axis + 1 :])  # type: ignore[assignment]
                output[axis] += 1
    return Geometry(kernels, strides, dilations, pads, (output[0], output[1]))


def resolve_padding(
    padding: Padding,
    input_hw: tuple[int, int],
    kernel_hw: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> Pads:
    """The rows and columns of padding, in numbers: ``((top, bottom), (left, right))``.

    "valid" is none. "same" makes the output ``ceil(n / stride)``; an odd row or column goes to the
    bottom or the right (as in Keras; ONNX's SAME_UPPER). Numbers are the same padding on all sides,
    one for each axis, or one for each side.

    Examples
    --------
    >>> resolve_padding("same", (5, 6), (3, 3), (2, 2))
    ((1, 1), (0, 1))
    """
    if isinstance(padding, str):
        if choice(padding, "padding", ("valid", "same")) == "valid":
            return (0, 0), (0, 0)
        same = []
        for n, k, s, d in zip(input_hw, kernel_hw, stride, dilation, strict=True):
            total = max((ceil_div(n, s) - 1) * s + (k - 1) * d + 1 - n, 0)
            same.append((total // 2, total - total // 2))
        return same[0], same[1]
    sides: Any = padding if isinstance(padding, tuple | list) else (padding, padding)
    if len(sides) != 2:
        raise CompressionError(
            'padding must be "valid", "same", an int, (ph, pw) or ((top, bottom), (left, right)), '
            f"not {padding!r}"
        )
    return pair(sides[0], "padding", 0), pair(sides[1], "padding", 0)


def normal_padding(padding: Padding) -> Padding:
    """Numbers as ((top, bottom), (left, right)); a word as it is, since it depends on the image."""
    pads = resolve_padding(padding, (1, 1), (1, 1))
    return padding if isinstance(padding, str) else pads


def inner_padding(pads: Pads, window: tuple[int, int]) -> None:
    """Refuse padding as wide as a pooling's window: a window without any pixel could lie in it."""
    if any(max(sides) >= size for sides, size in zip(pads, window, strict=True)):
        raise CompressionError(
            f"padding must be narrower than the window {window} on every side, not {pads}: a "
            "window would lie wholly in the padding"
        )


def pair(value: Any, name: str, low: int) -> tuple[int, int]:
    """An int for both axes, or one for each."""
    if not isinstance(value, tuple | list):
        return (as_int(value, name, low, LONGEST),) * 2
    if len(value) != 2:
        raise CompressionError(f"{name} must be an int or a pair of ints, not {value!r}")
    return as_int(value[0], name, low, LONGEST), as_int(value[1], name, low, LONGEST)


def image_array(x: Array) -> Array:
    """Check a batch of images (N, H, W, C): N may be 0, H and W may not."""
    x = float_array(x, "x", ndim=4)
    if 0 in x.shape[1:3]:
        raise CompressionError(f"the images of x must have pixels, not shape {x.shape}")
    return x


def gradient(dy: Array, shape: tuple[int, ...], x: Array) -> Array:
    """Check the gradient by an output: it has the output's shape and the input's dtype."""
    dy = float_array(dy, "dy")
    same_dtype(dy=dy, x=x)
    if dy.shape != shape:
        raise CompressionError(f"dy must have the output's shape {shape}, not {dy.shape}")
    return dy


def column_sums(dy: Array) -> Array:
    """Sums over all axes but the last. A product with ones is the fastest way."""
    rows = prod(dy.shape[:-1])
    ones: Array = np.ones(rows, dy.dtype)
    return ones @ dy.reshape(rows, dy.shape[-1])


class Scratch:
    """Memory for one array at a time, used again and again: new memory costs more than the work."""

    def __init__(self, dtype: DType) -> None:
        # Allocated and freed at once. The C library (glibc) returns large pieces to the system when
        # they are freed, and getting them back page by page costs more than the work. But once it
        # has seen a piece of just below 32 MB freed, it keeps pieces of that size.
        np.empty(KEPT_BYTES, np.uint8)
        self._flat: Array = np.empty(0, dtype)

    def array(self, *shape: int) -> Array:
        """An uninitialized array of this shape. It overwrites the one before."""
        size = prod(shape)
        if self._flat.size < size:
            self._flat = np.empty(size, self._flat.dtype)
        return self._flat[:size].reshape(shape)


def blocks(
    images: int, rows: int, row_bytes: int, block_bytes: int
) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of rows: some whole images, or some rows of one large image."""
    fit = max(block_bytes // max(row_bytes, 1), 1)  # rows of one image that fit in a block
    n, m = max(fit // rows, 1), min(fit, rows)
    for i in range(0, images, n):
        for j in range(0, rows, m):
            yield slice(i, min(i + n, images)), slice(j, min(j + m, rows))


def cut(x: Array, rows: slice, g: Geometry, fill: float = 0.0) -> Array:
    """The part of the images that these rows of the output read, with `fill` as the padding."""
    (first, stop), (left, right), (n, h, w, c) = g.needed(rows), g.pads[1], x.shape
    low, high = _inside(first, stop, h)
    inside = x[:, low:high]
    if first >= 0 and stop <= h and left == right == 0:
        return inside
    part: Array = np.full((n, stop - first, left + w + right, c), fill, x.dtype)
    part[:, low - first : high - first, left : left + w] = inside
    return part


def taps(part: Array, rows: slice, g: Geometry, *, writeable: bool = False) -> Array:
    """A view (kh, kw, N, rows, ow, C) of a `cut`: the pixel at each place of every window.

    `sliding_window_view` and a slice give the same view 5 microseconds later: at batch 1 that
    makes a convolution 5 to 45 % slower.
    """
    sn, sh, sw, sc = part.strides
    (s0, s1), (d0, d1) = g.stride, g.dilation
    return as_strided(
        part,
        (*g.kernel, len(part), rows.stop - rows.start, g.output[1], part.shape[3]),
        (sh * d0, sw * d1, sn, sh * s0, sw * s1, sc),
        writeable=writeable,
    )


def put_taps(dx: Array, dtaps: Array, rows: slice, g: Geometry) -> None:
    """The adjoint of `cut` and `taps`: add the entries of each window to its pixels, in place.

    Where no two windows overlap, the pixels are set and not added to.
    """
    (first, stop), (left, right), (n, h, w, c) = g.needed(rows), g.pads[1], dx.shape
    (kh, kw), (s0, s1), (d0, d1), (m, ow) = g.kernel, g.stride, g.dilation, dtaps.shape[3:5]
    height, width = stop - first, left + w + right
    whole = first >= 0 and stop <= h and width == w
    low, high = _inside(first, stop, h)
    crop = np.s_[:, low - first : high - first, left : left + w]
    if g.dilation == (1, 1) and kh <= s0 and kw <= s1:
        part = dx[:, first:stop] if whole else np.zeros((n, height, width, c), dx.dtype)
        np.copyto(taps(part, rows, g, writeable=True), dtaps)
        if not whole:
            dx[:, low:high] = part[crop]
        return
    # In `cells`, pixels that are one stride apart are neighbours, so one place of all windows is
    # added in long runs. With stride 1 the image itself has that order.
    down, across = ceil_div(height, s0), ceil_div(width, s1)
    direct = whole and g.stride == (1, 1)
    shape = (s0, s1, n, down, across, c)
    cells = dx[None, None, :, first:stop] if direct else np.zeros(shape, dx.dtype)
    for p, q in np.ndindex(kh, kw):
        i, j = p * d0 // s0, q * d1 // s1
        cells[p * d0 % s0, q * d1 % s1, :, i : i + m, j : j + ow] += dtaps[p, q]
    if not direct:
        part = cells.transpose(2, 3, 0, 4, 1, 5).reshape(n, down * s0, across * s1, c)
        dx[:, low:high] += part[crop]


def _inside(first: int, stop: int, height: int) -> tuple[int, int]:
    """The part of [first, stop) that lies in the image; an empty one where it is all padding."""
    low = min(max(first, 0), height)
    return low, max(min(stop, height), low)
