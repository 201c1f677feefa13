"""PartitionSpecs as tuples: padded, exchanged, compared, written out."""

import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import PartitionSpec

# The mesh axes of each dim.
Split = tuple[tuple[str, ...], ...]


def swapped(
    spec: PartitionSpec, shape: tuple[int, ...], sizes: Mapping[str, int]
) -> list[PartitionSpec]:
    """Return a spec with each two of its entries exchanged, as far as the shape divides."""
    entries = [*spec, *(None,) * (len(shape) - len(spec))]
    found = []
    for a in range(len(entries)):
        for b in range(a + 1, len(entries)):
            other = list(entries)
            other[a], other[b] = other[b], other[a]
            if other != entries and divides(other, shape, sizes):
                found.append(PartitionSpec(*other))
    return found


def divides(entries: list[Any], shape: tuple[int, ...], sizes: Mapping[str, int]) -> bool:
    for entry, size in zip(entries, shape, strict=True):
        axes = entry if isinstance(entry, tuple) else (entry,)
        if size % math.prod(sizes.get(a, 1) for a in axes if a is not None):
            return False
    return True


def without(spec: tuple[Any, ...], axes: tuple[str, ...]) -> PartitionSpec:
    def rest(entry: Any) -> Any:
        kept = tuple(a for a in (entry if isinstance(entry, tuple) else (entry,)) if a not in axes)
        return kept[0] if len(kept) == 1 else (kept or None)

    return PartitionSpec(*(None if e is None else rest(e) for e in spec))


def padded(spec: Any, dims: int) -> tuple[Any, ...]:
    return (*spec, *(None,) * (dims - len(spec)))


def text(spec: Any) -> str:
    return f"P({', '.join(map(repr, spec))})"


def axes_of(entries: tuple[Any, ...]) -> Split:
    return tuple(() if e is None else e if isinstance(e, tuple) else (e,) for e in entries)


def entries(split: Split) -> tuple[Any, ...]:
    return tuple(None if not axes else axes[0] if len(axes) == 1 else axes for axes in split)
