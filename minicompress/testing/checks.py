"""The contract of a compressor, of a layer, of a codec, of a pure function: as checks to run.

Each check raises an `AssertionError` that names the law that broke, the input, and both numbers, or
returns None. Where a law is exact it is checked exactly, in rational arithmetic.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from minicompress.arrays import Array
from minicompress.nn.layer import Layer
from minicompress.representation import Compressed
from minicompress.testing import laws
from minicompress.testing.laws import leaves, same
from minicompress.testing.strategies import weights as all_weights


class _Enough(BaseException):
    """Ends a search from inside: not an Exception, so that hypothesis lets it through."""


def check_compressor(
    compressor: Callable[[Array], Compressed],
    weights: SearchStrategy[Array] | None = None,
    *,
    seconds: float = 8.0,
) -> None:
    """Run the contract of a compressor: it walks through every hard kind of array it may meet.

    Parameters
    ----------
    compressor : callable, array -> Compressed
        Options bound beforehand: ``functools.partial(prune_magnitude, amount=0.5)``.
    weights : strategy of ndarray, optional
        Its domain, where that is not all float arrays of 0 to 4 dimensions: `matrices()`,
        `kernels()`, ``weights(kinds=...)`` or a strategy of your own. Of the strategies of this
        package every cell (dtype, kind of content, class of shape) is visited once before any is
        again, as far as the time goes.
    seconds : float
        Time after which no further array is tried.

    Raises
    ------
    AssertionError
        A law is broken; the message names it, the smallest array found that breaks it, and what
        was seen against what is right.

    Notes
    -----
    The laws, each tried on every array:

    - finite arrays are accepted, and nothing but a `CompressionError` is ever raised;
    - a `Compressed` of a known representation comes back, read-only, sharing no memory with the
      input; it decodes to a finite array of the input's shape and dtype;
    - the input is not written to; the same input gives the same result, bit for bit, in every
      memory layout and byte order, and read-only too;
    - the certificate is finite (infinite only where a norm is beyond float64); its measured error
      is the error, recomputed in rational arithmetic; its bound is not below the error, exactly;
      measured <= bound;
    - `num_params` and `storage_bits` agree with the streams, packed for real;
    - NaN and infinite entries are refused.

    Examples
    --------
    >>> from functools import partial
    >>> from minicompress.compressors.pruning import prune_magnitude
    >>> check_compressor(partial(prune_magnitude, amount=0.5), seconds=0.5)
    >>> def forgetful(weight):  # prunes, but says that nothing was lost
    ...     rep, cert = prune_magnitude(weight, amount=0.5)
    ...     return Compressed(rep, cert._replace(bound=0.0, measured=0.0))
    >>> check_compressor(forgetful)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    AssertionError: law 'measured is the error' is broken ...
    """
    strategy = all_weights() if weights is None else weights
    cells = getattr(strategy, "cells", [strategy])
    end = time.monotonic() + seconds
    rounds = 1 if len(cells) > 1 else 200  # every cell once before any is looked at again
    while True:
        for cell in cells:
            _search(cell, lambda w: laws.check_array(compressor, w), rounds, end)
            if time.monotonic() > end:
                return
        if rounds >= 60:
            return
        rounds *= 4


def _search(
    strategy: SearchStrategy[Array], law: Callable[[Array], None], examples: int, end: float
) -> None:
    """Try a law on drawn arrays; raise for the smallest that breaks it, found within reason."""
    found: list[tuple[int, AssertionError]] = []
    calls = 0

    def test(w: Array) -> None:
        nonlocal calls
        calls += bool(found)
        if calls > 300 or time.monotonic() > (end + 4 if found else end):
            raise _Enough
        try:
            law(w)
        except AssertionError as error:
            found.append((w.size, error))
            raise

    run = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )(given(strategy)(test))
    with suppress(_Enough, AssertionError):
        run()
    if found:
        _, smallest = min(reversed(found), key=lambda seen: seen[0])
        raise AssertionError(str(smallest)) from None


def check_pure(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check that a function writes to none of its arguments, and gives the same result twice.

    Parameters
    ----------
    fn : callable
    *args, **kwargs
        Its arguments. Arrays in them, also inside tuples, lists, dicts and dataclasses, are
        compared byte by byte before and after, and handed over writable as well as read-only; these
        themselves must hold the same objects as before.
        Random generators are copied for every call, so that each starts from the same state.

    Raises
    ------
    AssertionError
        An argument was changed, a read-only one was refused, or the second result differs.

    Examples
    --------
    >>> check_pure(np.sort, np.array([3.0, 1.0]))
    >>> check_pure(lambda x: x.sort(), np.array([3.0, 1.0]))
    Traceback (most recent call last):
    AssertionError: law 'arguments are not written to' is broken by <lambda>: array 0 of its \
arguments was [3.0, 1.0] and is now [1.0, 3.0]
    """
    name = getattr(fn, "__name__", repr(fn))
    results = []
    for read_only in (False, True):
        arguments = copy.deepcopy((args, kwargs))
        held = list(leaves(arguments))
        arrays = [leaf for _, leaf in held if isinstance(leaf, np.ndarray)]
        before = [a.copy() for a in arrays]
        for a in arrays if read_only else ():
            a.flags.writeable = False
        try:
            results.append(fn(*arguments[0], **arguments[1]))
        except Exception as error:
            if not read_only:
                raise
            raise _broken("read-only arguments are accepted", name, repr(error)) from error
        law = "arguments are not written to"
        for i, (old, new) in enumerate(zip(before, arrays, strict=True)):
            if not same(old, new):
                seen = f"array {i} of its arguments was {old.tolist()} and is now {new.tolist()}"
                raise _broken(law, name, seen)
        now = list(leaves(arguments))
        if [(path, id(leaf)) for path, leaf in held] != [(path, id(leaf)) for path, leaf in now]:
            raise _broken(law, name, f"they held {held!r} and now hold {now!r}")
    if not same(*results):
        law = "the same arguments give the same result"
        raise _broken(law, name, f"{results[0]!r}, then {results[1]!r}")


def _broken(law: str, name: str, seen: str) -> AssertionError:
    return AssertionError(f"law '{law}' is broken by {name}: {seen}")


def check_layer(layer: Layer, x: Array) -> None:
    """Check a layer: its output, its shape, and its vector-Jacobian product in every direction.

    Parameters
    ----------
    layer : Layer
        With plain arrays of float64 as weights.
    x : (N, ...) ndarray of float64
        Inputs that stay clear of the layer's kinks (0 for a ReLU, ties of a maximum) by 1e-4 or so,
        and so do its weights.

    Raises
    ------
    AssertionError
        A law is broken: `vjp` gives another output than `forward`, `output_shape` another shape;
        an argument is written to; the dtype changes; a weight or bias has no gradient, or what is
        no parameter has one; a gradient has another shape than what it is the gradient of; or
        ``<v, J'u>`` is not ``<Jv, u>``, for the input or for a weight.

    Notes
    -----
    Jv is taken by central differences with step h = 2**-17, about the cube root of eps. Their error
    is h**2 times a third derivative, and u / h from rounding: some 1e-10 of the sizes involved. Up
    to 1e-7 of them is allowed, for layers that curve strongly.

    Examples
    --------
    >>> from minicompress.nn.layers import Dense
    >>> check_layer(Dense(np.array([[1.0, 2.0], [0.5, -1.0]])), np.array([[3.0, 4.0]]))
    """

    def holds(law: str, condition: bool, seen: Any) -> None:
        if not condition:
            raise _broken(law, type(layer).__name__, str(seen))

    check_pure(layer.forward, x)
    y, pullback = layer.vjp(x)
    holds("vjp gives the output of forward", same(y, layer.forward(x)), y)
    shape = layer.output_shape(x.shape[1:])
    holds("output_shape is the shape", shape == y.shape[1:], f"{shape}, but it is {y.shape[1:]}")
    holds("dtype in, dtype out", y.dtype == x.dtype, y.dtype)
    rng = np.random.default_rng(0)
    u = rng.normal(size=y.shape)
    check_pure(pullback, u)
    dx, gradients = pullback(u)
    without = layer.vjp(x, input_gradient=False)[1](u)[0]
    holds("without input_gradient it is None", without is None, without)
    own = layer.parameters()
    holds(
        "weight and bias have gradients, and nothing else but parameters",
        {"weight", "bias"} & own.keys() <= gradients.keys() <= own.keys(),
        f"they are of {sorted(gradients)}, and the parameters {sorted(own)}",
    )
    for what, gradient in {"x": dx, **gradients}.items():
        value: Any = x if what == "x" else own[what]
        found = getattr(gradient, "shape", None)
        seen = f"{found} for {what}, but right is {value.shape}"
        holds("a gradient has the shape of its argument", found == value.shape, seen)
        v, h = rng.normal(size=value.shape), 2.0**-17
        jv = (_moved(layer, x, what, h * v) - _moved(layer, x, what, -h * v)) / (2 * h)
        pulled, pushed = float((v * gradient).sum()), float((jv * u).sum())
        sizes = float(np.abs(v * gradient).sum() + np.abs(jv * u).sum() + np.abs(y * u).sum())
        near = abs(pulled - pushed) <= 1e-7 * sizes
        holds("<v, J'u> = <Jv, u>", near, f"{pulled} and {pushed} for {what}")


def _moved(layer: Layer, x: Array, what: str, step: Array) -> Array:
    """The output with the input, or one of the weights, moved by a step."""
    if what == "x":
        return layer.forward(x + step)
    weight: Any = layer.parameters()[what]  # an array, or there would be no gradient
    return dataclasses.replace(layer, **{what: weight + step}).forward(x)


def check_codec(encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], value: Any) -> None:
    """Check that a value survives encoding, and that the same value gives the same bytes.

    Parameters
    ----------
    encode, decode : callables, value -> bytes -> value
    value : array, or whatever the codec is for

    Raises
    ------
    AssertionError
        The round trip changed the value, or two encodings differ.

    Examples
    --------
    >>> check_codec(lambda a: a.tobytes(), lambda b: np.frombuffer(b), np.array([1.0, 2.0]))
    """
    blob = encode(value)
    if encode(value) != blob:
        raise AssertionError(f"law 'the same value gives the same bytes' is broken for {value!r}")
    back = decode(blob)
    if not same(back, value):
        raise AssertionError(f"law 'decode undoes encode' is broken: {value!r} became {back!r}")
