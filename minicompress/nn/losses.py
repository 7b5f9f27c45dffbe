"""Losses: a number to make small, and its gradient by the network's outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from minicompress.arrays import (
    Array,
    as_float,
    float_array,
    integer_array,
    normal_axis,
    same_dtype,
    widened,
)
from minicompress.errors import CompressionError
from minicompress.nn.kernels.windows import gradient


def softmax(x: Array, axis: int = -1) -> Array:
    """Positive numbers that add up to 1 along an axis: ``exp(x) / sum(exp(x))``.

    Parameters
    ----------
    x : ndarray of float16, float32 or float64, at least one axis
    axis : int

    Returns
    -------
    y : ndarray like `x`

    Raises
    ------
    CompressionError
        `x` is not a float array or has no such axis.

    Notes
    -----
    The maximum is subtracted from `x` first: the result is the same, and nothing overflows.

    Examples
    --------
    >>> softmax(np.array([[1000.0, 1000.0]]))
    array([[0.5, 0.5]])
    """
    x = float_array(x, "x")
    axis = normal_axis(axis, "axis", x.ndim)
    return _softmax(x, axis).astype(x.dtype, copy=False)


def softmax_vjp(dy: Array, x: Array, axis: int = -1) -> Array:
    """The vector-Jacobian product of `softmax`: ``y * (dy - sum(dy * y))``, y its output."""
    x = float_array(x, "x")
    axis = normal_axis(axis, "axis", x.ndim)
    dy = gradient(dy, x.shape, x)
    y = _softmax(x, axis)
    dx: Array = y * (dy - (dy * y).sum(axis, keepdims=True))
    return dx.astype(x.dtype, copy=False)


def _softmax(x: Array, axis: int) -> Array:
    """In the dtype of the computation; scipy refuses an axis of length 0."""
    y: Array = special.softmax(widened(x), axis) if x.shape[axis] else x
    return y


def softmax_cross_entropy(logits: Any, labels: Array) -> tuple[float, Array]:
    """The mean over the batch of ``-log softmax(logits)[label]``.

    Parameters
    ----------
    logits : (N, classes) ndarray of float16, float32 or float64
        N may be 0.
    labels : (N,) ndarray of integers in [0, classes)

    Returns
    -------
    loss : float
        Computed in float64; 0.0 for an empty batch.
    dlogits : ndarray like `logits`
        ``(softmax(logits) - one_hot(labels)) / N``

    Raises
    ------
    CompressionError
        Shapes do not fit, or a label is out of range.

    Examples
    --------
    >>> loss, dlogits = softmax_cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(loss, 6), dlogits
    (1.386294, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    if isinstance(logits, tuple):
        raise CompressionError(
            f"the network has {len(logits)} outputs: give a loss that takes a tuple of them"
        )
    logits = float_array(logits, "logits", ndim=2)
    labels = integer_array(labels, "labels")
    n, classes = logits.shape
    if labels.shape != (n,):
        raise CompressionError(f"labels must have shape ({n},), not {labels.shape}")
    if n == 0:
        return 0.0, np.zeros(logits.shape, logits.dtype)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise CompressionError(
            f"labels must lie in [0, {classes}), not reach from {labels.min()} to {labels.max()}"
        )
    rows, wide = np.arange(n), logits.astype(np.float64)
    loss = abs(float(special.log_softmax(wide, axis=1)[rows, labels].sum() / n))  # of numbers <= 0
    dlogits: Array = special.softmax(wide, axis=1)
    dlogits[rows, labels] -= 1.0
    return loss, (dlogits / n).astype(logits.dtype)


def distillation(
    logits: Array, labels: Array, teacher: Array, *, temperature: float = 2.0, share: float = 0.7
) -> tuple[float, Array]:
    """The cross-entropy with the labels, mixed with the distance from a teacher's outputs.

    ``(1 - share) cross_entropy + share T**2 KL(softmax(teacher / T) || softmax(logits / T))``,
    means over the batch. The factor T**2 keeps the size of the gradient at any temperature T.

    Parameters
    ----------
    logits : (N, classes) ndarray of float16, float32 or float64
        N may be 0.
    labels : (N,) ndarray of integers in [0, classes)
    teacher : (N, classes) ndarray of the dtype of `logits`
        The logits of the model to learn from.
    temperature : float, positive
        The higher it is, the more the teacher's small probabilities count.
    share : float in [0, 1]
        The weight of the teacher's part; with 0 this is `softmax_cross_entropy`.

    Returns
    -------
    loss : float
        Computed in float64; 0.0 for an empty batch.
    dlogits : ndarray like `logits`
        ``((1 - share) (special.softmax(logits) - one_hot) + share T (special.softmax(logits / T) -
        special.softmax(teacher / T))) / N``

    Raises
    ------
    CompressionError
        Shapes or dtypes do not fit, a label or a number is out of range.

    Notes
    -----
    In `fit`, give the teacher's logits as `targets` and this function as `loss`; bind its options
    with functools.partial.

    G. Hinton, O. Vinyals and J. Dean, *Distilling the knowledge in a neural network* (2015).

    Examples
    --------
    >>> logits = np.array([[1.0, 3.0]])
    >>> loss, dlogits = distillation(logits, np.array([1]), logits, share=1.0)
    >>> loss, dlogits
    (0.0, array([[0., 0.]]))
    """
    share = as_float(share, "share", 0.0, 1.0)
    if as_float(temperature, "temperature", 0.0) == 0.0:
        raise CompressionError("temperature must be more than 0")
    loss, gradient = softmax_cross_entropy(logits, labels)
    logits, teacher = float_array(logits, "logits"), float_array(teacher, "teacher")
    same_dtype(logits=logits, teacher=teacher)
    if teacher.shape != logits.shape:
        raise CompressionError(
            f"teacher must have the shape {logits.shape} of logits, not {teacher.shape}"
        )
    n = len(logits)
    if n == 0:
        return loss, gradient
    ours, theirs = (
        special.log_softmax(z.astype(np.float64) / temperature, 1) for z in (logits, teacher)
    )
    wanted = np.exp(theirs)
    divergence = float((wanted * (theirs - ours)).sum() / n)
    pull = (np.exp(ours) - wanted) * (share * temperature / n)
    mixed = (1 - share) * loss + share * temperature**2 * divergence
    return mixed, ((1 - share) * gradient.astype(np.float64) + pull).astype(logits.dtype)


def mean_squared_error(outputs: Array, targets: Array) -> tuple[float, Array]:
    """The mean over all entries of ``(outputs - targets) ** 2``.

    Parameters
    ----------
    outputs, targets : ndarray of float16, float32 or float64, of the same shape and dtype

    Returns
    -------
    loss : float
        Computed in float64; 0.0 where there are no entries.
    doutputs : ndarray like `outputs`
        ``2 * (outputs - targets) / size``

    Raises
    ------
    CompressionError
        Shapes or dtypes differ.

    Examples
    --------
    >>> mean_squared_error(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
    (2.0, array([0., 2.]))
    """
    outputs, targets = float_array(outputs, "outputs"), float_array(targets, "targets")
    same_dtype(outputs=outputs, targets=targets)
    if outputs.shape != targets.shape:
        raise CompressionError(
            f"targets must have the shape {outputs.shape} of outputs, not {targets.shape}"
        )
    if outputs.size == 0:
        return 0.0, np.zeros(outputs.shape, outputs.dtype)
    difference = outputs.astype(np.float64) - targets
    loss = float(np.mean(difference * difference))
    difference *= 2.0 / outputs.size
    return loss, difference.astype(outputs.dtype)
