"""Match arrays with weights, by the names that Keras and PyTorch give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise

from minicompress.arrays import Array
from minicompress.errors import CompressionError
from minicompress.interchange.layouts import KINDS, Slot
from minicompress.nn.layer import Shape

AFFINE = ("weight", "bias")
NORM = ("scale", "offset", "mean", "variance")
SLOPE = ("slope",)
# The last word of an array's name, for each of our fields.
KERAS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "alpha")
TORCH = ("weight", "bias", "weight", "bias", "running_mean", "running_var", "weight")
WORDS = {
    "keras": dict(zip(AFFINE + NORM + SLOPE, KERAS, strict=True)),
    "torch": dict(zip(AFFINE + NORM + SLOPE, TORCH, strict=True)),
}
STAND_INS = {"scale": 1.0, "offset": 0.0}  # if a batch normalization has no gamma or beta

ENDS = {
    "keras": rf"{'|'.join(KERAS)}|depthwise_kernel|vars/\d+",
    "torch": "|".join(TORCH),
}
OTHER = {"keras": ("torch", "PyTorch"), "torch": ("keras", "Keras")}


def refuse_foreign(names: Iterable[str], layout: str) -> None:
    """Refuse names of the other framework, whose arrays have another layout."""
    other, framework = OTHER[layout]
    own, foreign = ([n for n in names if _split(n, side)] for side in (layout, other))
    only = [name for name in foreign if name not in own]
    if only and set(own) <= set(foreign):
        raise CompressionError(
            f"layout={layout!r} does not fit arrays with the names of {framework}, "
            f"{listed(only)}: give layout={other!r}"
        )


def matched(
    slots: Sequence[Slot], arrays: Mapping[str, Array], layout: str
) -> dict[int, str | None]:
    """Find the name of the array for each slot.

    Parameters
    ----------
    slots : sequence of Slot
        In the order of the layers.
    arrays : mapping
    layout : "keras" | "torch"
        The framework whose names the arrays have.

    Returns
    -------
    dict
        Names by the slot's index. None for a gamma or beta that a batch normalization does not
        have. Slots without an array are left out.

    Raises
    ------
    CompressionError
        Names, order and shapes do not tell the layers apart.
    """
    in_order = list(arrays)
    alphabetical = in_order == sorted(in_order)
    if alphabetical:
        in_order = sorted(in_order, key=by_number)
    groups: dict[str, dict[str, str]] = {}
    for name in in_order:
        if parts := _split(name, layout):
            groups.setdefault(parts[0], {}).setdefault(parts[1], name)
    if not groups:
        if alphabetical:
            _refuse_unordered(in_order)
        return dict(enumerate(in_order[: len(slots)]))
    layers = {prefix: _layer(prefix, ends, arrays, layout) for prefix, ends in groups.items()}
    found: dict[int, str | None] = {}
    mine = [list(group) for _, group in groupby(enumerate(slots), lambda place: place[1].layer)]
    for kind in dict.fromkeys(KINDS.values()):
        ours = [group for group in mine if group[0][1].kind == kind]
        theirs = {prefix: fields for prefix, (k, fields) in layers.items() if k == kind}
        shapes = {p: arrays[next(iter(fields.values()))].shape for p, fields in theirs.items()}
        if alphabetical:
            for shape in dict.fromkeys(shapes.values()):
                _refuse_unordered([prefix for prefix in theirs if shapes[prefix] == shape])
        prefixes: Sequence[str | None] = list(theirs)
        if len(ours) != len(theirs) or (alphabetical and _unordered(theirs)):
            prefixes = _by_shape([group[0][1] for group in ours], shapes)
        for group, prefix in zip(ours, prefixes, strict=True):
            fields = {} if prefix is None else theirs[prefix]
            for index, slot in group:
                if slot.field in fields or (fields and slot.field in STAND_INS):
                    found[index] = fields.get(slot.field)
    return found


def by_number(name: str) -> list[tuple[int, str]]:
    """A key that sorts 'b.2' before 'b.10'.

    Examples
    --------
    >>> sorted(["b.10", "b.2", "a"], key=by_number)
    ['a', 'b.2', 'b.10']
    """
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def summed(items: Sequence[str], most: int) -> list[str]:
    """The first items; if there are more than `most`, the last line counts the rest.

    Examples
    --------
    >>> summed(["a", "b", "c", "d"], 3)
    ['a', 'b', 'and 2 more']
    """
    kept = items if len(items) <= most else items[: most - 1]
    return [*kept, *([f"and {len(items) - len(kept)} more"] if len(kept) < len(items) else [])]


def listed(names: Iterable[str]) -> str:
    """The first few names, for an error."""
    return ", ".join(summed([repr(name) for name in names], 4))


def _split(name: str, layout: str) -> tuple[str, str] | None:
    """Split a name into the layer's part and the last word, if the framework uses that word."""
    parts = re.fullmatch(rf"(?:(.*)[./])?({ENDS[layout]})(?::\d+)?", name)
    return parts and (parts[1] or "", parts[2].removeprefix("depthwise_"))


def _layer(
    prefix: str, ends: Mapping[str, str], arrays: Mapping[str, Array], layout: str
) -> tuple[str, dict[str, str]]:
    """The kind of a layer, from its arrays' names, and these names by our fields."""
    words = WORDS[layout]
    if layout == "keras" and all(end.startswith("vars/") for end in ends):
        ends = _numbered(prefix, [ends[end] for end in sorted(ends)], arrays)
    if ends.keys() & ({words[field] for field in NORM} - {words[field] for field in AFFINE}):
        return "norm", {field: ends[words[field]] for field in NORM if words[field] in ends}
    affine = {field: ends[words[field]] for field in AFFINE if words[field] in ends}
    ndim = arrays[affine["weight"]].ndim if "weight" in affine else 0
    if words["slope"] in ends and (layout == "keras" or (ndim == 1 and "bias" not in affine)):
        return "prelu", {"slope": ends[words["slope"]]}
    return {4: "conv", 2: "dense"}.get(ndim, ""), affine


def _numbered(prefix: str, names: list[str], arrays: Mapping[str, Array]) -> dict[str, str]:
    """The names by word, for vars/0, vars/1, ...: Keras numbers the arrays that a layer has."""
    vectors = arrays[names[0]].ndim == 1
    if vectors and len(names) == 3:
        raise CompressionError(
            f"arrays of {prefix!r} are ambiguous: vars/0 may be gamma or beta: give names="
        )
    fields = {4: NORM, 2: NORM[2:], 1: SLOPE}.get(len(names), ()) if vectors else AFFINE
    return {WORDS["keras"][field]: name for field, name in zip(fields, names, strict=False)}


def _by_shape(ours: Sequence[Slot], theirs: Mapping[str, Shape]) -> list[str | None]:
    """For each layer the first remaining one of its shape; for the others those left over."""
    left = dict(theirs)
    found = []
    for slot in ours:
        fits = (prefix for prefix, shape in left.items() if shape in {slot.shape, *slot.others})
        found.append(next(fits, None))
        left.pop(found[-1] or "", None)
    over = iter(left)
    return [next(over, None) if prefix is None else prefix for prefix in found]


def _unordered(names: Iterable[str]) -> bool:
    """Whether names differ by a word before they differ by a number.

    Then their order in the alphabet says nothing of the order of the layers.
    """
    keys = [by_number(re.sub(r"_(\d)", r"\1", name)) for name in names]  # conv2d, conv2d_1
    for a, b in pairwise(keys):
        first = next((pair for pair in zip(a, b, strict=False) if pair[0] != pair[1]), None)
        if first and min(number for number, _ in first) < 0:
            return True
    return False


def _refuse_unordered(names: Sequence[str]) -> None:
    """Refuse layers of one shape in alphabetical order, if words in their names differ."""
    if _unordered(names):
        raise CompressionError(
            f"arrays are ambiguous: the order of {listed(names)} is alphabetical and says "
            "nothing: give names= or prefix="
        )
