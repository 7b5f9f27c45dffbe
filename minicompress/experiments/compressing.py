"""Compressing somebody's file: which method for which array, what it takes, what is proven.

This is what ``python -m minicompress compress`` does.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minicompress.analysis.array_sizes import form_of
from minicompress.arrays import Array, ceil_div
from minicompress.errors import CompressionError, FileFormatError, naming
from minicompress.experiments.comparison import Progress
from minicompress.experiments.model_files import (
    WeightFile,
    read_network,
    read_weights,
    suffix_of,
    write_weights,
)
from minicompress.interchange.onnx_decoding import save_decoded_onnx
from minicompress.nn.network import Network, apply
from minicompress.nn.parameters import as_tuple, finite_outputs
from minicompress.norms import norm_of
from minicompress.representation import (
    Certificate,
    Rep,
    decode,
    dtype_of,
    shape_of,
    storage_bits,
)
from minicompress.search.methods import parse_method
from minicompress.search.plan import compress, planned
from minicompress.search.weights import total
from minicompress.tables import aligned, wrap

LEGEND = """bytes: of the array, packed without entropy coding. bound: the proven limit of the
distance between the original array and the decoded one, error: the measured distance; both in
percent of the norm of the original array."""


class ArrayResult(NamedTuple):
    """What became of one array; without a certificate it is as it was.

    Parameters
    ----------
    name : str
    shape : tuple of int
    method, why : str
        The method as it was asked for, and why it was not applied, or "".
    dense_bytes, bytes : int
    certificate : Certificate or None
    norm : float
        Of the original array, in the Frobenius norm.
    """

    name: str
    shape: tuple[int, ...]
    method: str
    why: str
    dense_bytes: int
    bytes: int
    certificate: Certificate | None
    norm: float


class OutputChange(NamedTuple):
    """How outputs changed: relative to their norm, and the share of inputs that keep their class.

    `agreement` is None where the outputs are no scores of classes.
    """

    inputs: int
    error: float
    agreement: float | None


class CompressedFile(NamedTuple):
    """A file that was compressed, array by array, and what it does to the outputs."""

    path: str
    out: str
    file_bytes: int
    out_bytes: int
    rows: tuple[ArrayResult, ...]
    change: OutputChange | None
    note: str


def compress_file(
    path: str,
    out: str,
    methods: Mapping[str, str],
    *,
    x: Array | None = None,
    progress: Progress | None = None,
) -> CompressedFile:
    """Compress the weights of a file by short names of methods, and write the file again.

    Parameters
    ----------
    path, out : str
        .onnx, .npz, .safetensors or .mcz.
    methods : mapping of str to str
        For names of arrays or patterns, methods as `parse_method` reads them. A pattern leaves
        arrays alone that its method cannot compress; for a name that is an error.
    x : (N, ...) ndarray, optional
        Inputs: the outputs before and after are compared on them.
    progress : callable, optional

    Returns
    -------
    CompressedFile
    """
    compressors = {}
    for key, text in methods.items():
        with naming(f"the method of {key!r}") if len(methods) > 1 else naming("--method"):
            compressors[key] = parse_method(text)
    if x is not None and suffix_of(out) not in (".onnx", ".mcz"):
        raise CompressionError(f"--calibration needs a network, and {out} will hold arrays alone")
    source = read_weights(path, out=out, x=x)
    original = None if x is None else read_network(path, x)
    before = None if original is None else outputs_of(*original)
    arrays, rows = _compressed(source, methods, compressors, progress)
    shape = None if original is None else original[1].shape[1:]
    size = os.path.getsize(path)
    out_bytes = write_weights(out, source, arrays, shape)
    change = None
    if x is not None:
        change = output_change(before, outputs_of(*read_network(out, x)))
    return CompressedFile(path, out, size, out_bytes, rows, change, source.note)


def decompress_file(path: str, out: str, *, original: str | None = None) -> tuple[int, int]:
    """Write a file again with every array decoded; how many bytes it has, and how many it had.

    Parameters
    ----------
    path, out : str
        .onnx, .npz, .safetensors or .mcz.
    original : str, optional
        The ONNX file whose graph `out` gets: arrays alone have none.
    """
    if suffix_of(path) == suffix_of(out) == ".onnx":
        size = os.path.getsize(path)
        return save_decoded_onnx(out, path), size
    source = read_weights(path, out=out)
    arrays: dict[str, Rep] = {name: decode(rep) for name, rep in source.arrays.items()}
    if original is not None:
        source = read_weights(original, out=original)
        arrays = {name: rep for name, rep in arrays.items() if name in source.arrays}
        if not arrays:
            raise CompressionError(f"no array of {path} has the name of a weight of {original}")
        arrays = source.arrays | arrays
    size = os.path.getsize(path)  # `out` may be the same file
    return write_weights(out, source, arrays, None), size


def read_plan(path: str) -> dict[str, str]:
    """The methods of a plan: a JSON object of names or patterns, and methods."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise CompressionError(f"--plan {path!r} has {twice[0]!r} twice")
        return dict(pairs)

    try:
        with open(path, encoding="utf-8") as file:
            plan = json.load(file, object_pairs_hook=once)
    except OSError as error:
        raise FileFormatError(f"--plan {path!r} cannot be read: {error.strerror}") from None
    except CompressionError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"--plan {path!r} is no JSON: {error}") from None
    if not isinstance(plan, dict) or not plan:
        raise CompressionError(f"--plan {path!r} must be an object like {{'*': 'int8'}}")
    for name, text in plan.items():
        if not isinstance(text, str):
            raise CompressionError(f"--plan {path!r}: {name!r} must have a method, not {text!r}")
    return plan


def outputs_of(network: Network, x: Array) -> Any:
    """The outputs for the inputs of --calibration."""
    with naming(f"--calibration of shape {x.shape}"):
        return apply(network, x)


def output_change(before: Any, after: Any) -> OutputChange:
    """Compare outputs, all of them together; the class is that of the first output."""
    pairs = list(
        zip(as_tuple(finite_outputs(before)), as_tuple(finite_outputs(after)), strict=True)
    )
    moved = math.sqrt(sum(norm_of(a.astype(float) - b) ** 2 for a, b in pairs))
    size = math.sqrt(sum(norm_of(a.astype(float)) ** 2 for a, _ in pairs))
    scores, others = pairs[0]
    agreement = None
    if scores.ndim == 2 and scores.shape[1] > 1:
        agreement = float(np.mean(scores.argmax(1) == others.argmax(1)))
    return OutputChange(len(scores), moved / size if size else float(moved > 0), agreement)


def format_compressed(found: CompressedFile) -> str:
    """A row for each array that was compressed, the totals, and what it did to the outputs."""
    head = ("array", "shape", "method", "bytes", "times smaller", "bound", "error")
    rows = [row for row in found.rows if row.certificate is not None]
    others = [row for row in found.rows if row.certificate is None]
    cells: list[tuple[str, ...]] = [head]
    cells += [
        (
            row.name,
            " x ".join(map(str, row.shape)),
            row.method,
            *_sizes([row]),
            *_shares([row]),
        )
        for row in rows
    ]
    if others:
        cells.append((f"{len(others)} others", "", "as they are", *_sizes(others), "", ""))
    cells.append(("total", "", "", *_sizes(found.rows), *_shares(rows)))
    lines = [aligned(cells, words=3), wrap(" ".join(LEGEND.split()))]
    if kept := [row for row in others if row.why]:
        shown = "\n".join(f"  {row.name}: {row.why}" for row in kept[:10])
        more = f"\n  and {len(kept) - 10} more" if len(kept) > 10 else ""
        lines.append(f"Kept, since the method does not fit:\n{shown}{more}")
    if found.note:
        lines.append(wrap(found.note))
    ratio = found.file_bytes / found.out_bytes
    lines.append(
        f"{found.out}: {found.out_bytes:,} bytes, {found.path}: {found.file_bytes:,}; "
        f"{ratio:.2f} times smaller"
    )
    if found.change is not None:
        lines.append(format_change(found.change))
    return "\n\n".join(lines)


def format_change(change: OutputChange) -> str:
    """One sentence about the outputs."""
    text = f"Outputs of {change.inputs:,} inputs: relative error {change.error:.2%}"
    if change.agreement is not None:
        text += f", {change.agreement:.2%} keep their class"
    return text


def _compressed(
    source: WeightFile,
    methods: Mapping[str, str],
    compressors: Mapping[str, Any],
    progress: Progress | None,
) -> tuple[dict[str, Rep], tuple[ArrayResult, ...]]:
    """The arrays, array by array, each by the entry of the plan that counts for it."""
    chosen = planned(source.arrays, compressors)
    sizes = {name: math.prod(shape_of(rep)) for name, rep in source.arrays.items()}
    whole, done = sum(sizes[name] for name in chosen) or 1, 0
    made = dict(source.arrays)
    rows = []
    for name, rep in source.arrays.items():
        method, why, certificate, norm = "", "", None, 0.0
        key = chosen.get(name)
        if key is not None and (compressor := compressors[key]) is not None:
            method = methods[key].strip()
            try:
                found = compress({name: rep}, {name: compressor})
                made[name], certificate = found.arrays[name], found.certificates[name]
                norm = norm_of(decode(rep).astype(np.float64))
            except CompressionError as error:
                if key == name:
                    raise
                why = str(error).removeprefix(f"array {name!r}: ")
            done += sizes[name]
            if progress is not None:
                progress("compressing", done / whole)
        rows.append(
            ArrayResult(
                name,
                shape_of(rep),
                method or form_of(rep),
                why,
                math.prod(shape_of(rep)) * dtype_of(rep).itemsize,
                ceil_div(storage_bits(made[name]), 8),
                certificate,
                norm,
            )
        )
    return made, tuple(rows)


def _sizes(rows: Any) -> tuple[str, str]:
    dense, packed = (sum(getattr(row, field) for row in rows) for field in ("dense_bytes", "bytes"))
    return f"{packed:,}", f"{dense / packed:.2f}" if packed else "-"


def _shares(rows: Any) -> tuple[str, str]:
    """Bound and error of all rows together, in percent of the norm."""
    both = total(row.certificate for row in rows)
    norm = math.sqrt(sum(row.norm**2 for row in rows))
    shares = (both.bound, both.measured)
    return tuple(f"{share / norm:.3%}" if norm else "-" for share in shares)  # type: ignore[return-value]
