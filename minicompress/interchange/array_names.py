"""Which array is meant for which weight, by the names that Keras and PyTorch give them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from minicompress.arrays import Array

Shape: TypeAlias = tuple[int, ...]

KINDS = ("conv", "dense", "norm")

# The end of a name, for a layer with one weight matrix and for a batch normalization.
AFFINE = {
    "kernel": "weight",
    "depthwise_kernel": "weight",
    "weight": "weight",
    "bias": "bias",
    "vars/0": "weight",
    "vars/1": "bias",
}
NORM = {
    "gamma": "scale",
    "beta": "offset",
    "moving_mean": "mean",
    "moving_variance": "variance",
    "weight": "scale",
    "bias": "offset",
    "running_mean": "mean",
    "running_var": "variance",
    "vars/0": "scale",
    "vars/1": "offset",
    "vars/2": "mean",
    "vars/3": "variance",
}
ENDS = re.compile(rf"^(?:(.*)[./])?({'|'.join(sorted({*AFFINE, *NORM}, key=len, reverse=True))})$")


def matched(
    slots: Sequence[tuple[str, str, Shape]], arrays: Mapping[str, Array], problems: list[str]
) -> dict[int, str]:
    """The name of the array for each slot, by the slot's index.

    Parameters
    ----------
    slots : sequence of (kind, field, shape)
        In the order of the layers. Kinds are "conv", "dense" and "norm"; a layer's slots stand
        together, and begin with "weight" or "scale".
    arrays : mapping
    problems : list of str
        Gets a line for each pair of layers that cannot be told apart.

    Returns
    -------
    dict
        A slot that no array is meant for is left out.

    Examples
    --------
    >>> import numpy as np
    >>> slots = [("conv", "weight", (1, 1, 2, 3)), ("norm", "scale", (3,)), ("norm", "mean", (3,))]
    >>> names = {"a.weight": (1, 1, 2, 3), "b.running_mean": (3,), "b.weight": (3,)}
    >>> matched(slots, {name: np.empty(shape) for name, shape in names.items()}, [])
    {0: 'a.weight', 1: 'b.weight', 2: 'b.running_mean'}
    """
    in_order = list(arrays)
    alphabetical = in_order == sorted(in_order)
    if alphabetical:
        in_order = sorted(in_order, key=by_number)
    groups: dict[str, dict[str, str]] = {}
    for name in in_order:
        if known := ENDS.match(re.sub(r":\d+$", "", name)):
            groups.setdefault(known[1] or "", {}).setdefault(known[2], name)
    if not groups:
        if alphabetical and len({_without_numbers(name) for name in in_order}) > 1:
            problems.append(_unordered(in_order))
            return {}
        return dict(enumerate(in_order[: len(slots)]))
    of_kind: dict[str, list[str]] = defaultdict(list)
    for prefix, members in groups.items():
        of_kind[_kind(members, arrays)].append(prefix)
    if alphabetical:
        for prefixes in of_kind.values():
            problems += _ambiguous(prefixes, groups, arrays)
    found, taken = {}, dict.fromkeys(KINDS, -1)
    for index, (kind, field, _) in enumerate(slots):
        taken[kind] += field in {"weight", "scale"}
        if taken[kind] < len(of_kind[kind]):
            members = groups[of_kind[kind][taken[kind]]]
            ends = NORM if kind == "norm" else AFFINE
            for end, name in members.items():
                if ends.get(end) == field:
                    found[index] = name
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


def _kind(members: Mapping[str, str], arrays: Mapping[str, Array]) -> str:
    """What layer arrays of one prefix belong to."""
    ends = set(members)
    if ends - set(AFFINE):
        return "norm" if ends <= set(NORM) else ""
    first = next((members[e] for e in members if AFFINE[e] == "weight"), None)
    ndim = 0 if first is None else arrays[first].ndim
    return {4: "conv", 2: "dense", 1: "norm"}.get(ndim, "")


def _ambiguous(
    prefixes: list[str], groups: Mapping[str, dict[str, str]], arrays: Mapping[str, Array]
) -> list[str]:
    """Layers of one shape in alphabetical order that differ by more than numbers."""
    lines = []
    alike: dict[object, list[str]] = defaultdict(list)
    for prefix in prefixes:
        shapes = sorted((end, arrays[name].shape) for end, name in groups[prefix].items())
        alike[tuple(shapes)].append(prefix)
    for same in alike.values():
        if len({_without_numbers(prefix) for prefix in same}) > 1:
            lines.append(_unordered(same))
    return lines


def _without_numbers(name: str) -> str:
    return re.sub(r"_?\d+", "", name)


def _unordered(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names))
    return f"ambiguous: the order of {listed} is alphabetical and says nothing: give names="
