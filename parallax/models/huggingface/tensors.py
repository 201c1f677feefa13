"""The conversion between a folder's tensors and pieces of our parameters, whole or in slices.

Our dims: d model width, h heads, g key/value heads, k head_dim, n its part that is not rotated, w
head_dim of values, f MLP width, s width of shared experts, v vocabulary, l positions, e experts, c
and q widths of the latents of keys and values and of queries, j that of the former with its rotated
key; r is the number of rotated elements of a head.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Index = tuple[slice, ...]


@dataclass(frozen=True)
class Layout:
    """The mapping between the dims of a tensor and those of our parameter.

    Attributes:
      ours: dims of our parameter, such as "dhk".
      theirs: dims of the tensor; merged dims share an entry: ("hk", "d"). In a tensor that holds
        several parameters, a star says where they follow one another: ("*hk", "d") one whole
        parameter after the other, ("h*n", "c") in turn within each h, ("d", "f*") in turn within
        each f.
      halves: the tensor stores the first elements of all rotary pairs, then the second ones, then
        what is not rotated; ours stores the elements of a pair side by side.
      parts: what takes turns at the star, as merged dims ("" is one element): ("hk", "gk", "gk").
      part: index into them.
    """

    ours: str
    theirs: tuple[str, ...]
    halves: bool = False
    parts: tuple[str, ...] = ()
    part: int = 0

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        turns = sum(_size(part, sizes) for part in self.parts)
        return tuple(
            _size(merged.partition("*")[0], sizes) * turns if "*" in merged
            else _size(merged, sizes)
            for merged in self.theirs
        )  # fmt: skip

    def cut(self, sizes: Mapping[str, int], index: Index) -> Index:
        """Return the slice of the tensor that contains a slice of our parameter.

        Of merged dims only the first is sliced; `take` slices the others, and finds the part of a
        tensor whose parts take turns within a dim.
        """
        wanted = dict(zip(self.ours, index, strict=True))
        slices = []
        for merged in self.theirs:
            outer, star, inner = merged.partition("*")
            each = sum(_size(part, sizes) for part in self.parts) if star and outer else 1
            start = self._offset(sizes) if star and not outer else 0
            first, *others = outer or inner
            span = wanted[first] if self._is_cut(first) else slice(0, sizes[first])
            each *= _size(others, sizes)
            slices.append(slice(start + span.start * each, start + span.stop * each))
        return tuple(slices)

    def take(self, x: np.ndarray, sizes: Mapping[str, int], index: Index) -> np.ndarray:
        """Return our slice, in our order of dims, from the tensor's slice at `cut`."""
        wanted = dict(zip(self.ours, index, strict=True))
        x = self._own_part(x, sizes)
        merged = [entry.replace("*", "") for entry in self.theirs]
        dims = "".join(merged)
        whole = {d for m in merged for d in m if d != m[0] or not self._is_cut(d)}
        x = x.reshape([sizes[d] if d in whole else wanted[d].stop - wanted[d].start for d in dims])
        if self.halves:
            x = np.take(x, _neighbours(sizes), axis=dims.index("k"))
        for d in whole:
            x = x[(slice(None),) * dims.index(d) + (wanted[d],)]
        return x.transpose([dims.index(d) for d in self.ours])

    def _is_cut(self, outer: str) -> bool:
        """Return whether the tensor can be sliced along this dim: not along k in halves."""
        return not (self.halves and outer == "k")

    def _offset(self, sizes: Mapping[str, int]) -> int:
        """Return where our part begins among those that take turns."""
        return sum(_size(part, sizes) for part in self.parts[: self.part])

    def _own_part(self, x: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Return our part of a slice in which parts take turns within a dim."""
        for axis, merged in enumerate(self.theirs):
            if "*" in merged and not merged.startswith("*"):
                turns = sum(_size(part, sizes) for part in self.parts)
                first, size = self._offset(sizes), _size(self.parts[self.part], sizes)
                x = x.reshape(*x.shape[:axis], x.shape[axis] // turns, turns, *x.shape[axis + 1 :])
                x = x[(slice(None),) * (axis + 1) + (slice(first, first + size),)]
        return x

    def put(self, x: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Return our whole parameter as the tensor, or as its part for `join`."""
        merged = [part for entry in self.theirs for part in entry.split("*")]
        dims = "".join(merged)
        x = x.transpose([self.ours.index(d) for d in dims])
        if self.halves:
            x = np.take(x, np.argsort(_neighbours(sizes)), axis=dims.index("k"))
        return x.reshape([_size(part, sizes) for part in merged])

    def join(self, parts: Sequence[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
        """Return the whole tensor from what `put` made of all its parts, in their order."""
        if not self.parts:
            return parts[0]
        star = next(axis for axis, entry in enumerate(self.theirs) if "*" in entry)
        return np.concatenate(parts, axis=star + 1).reshape(self.shape(sizes))


def _size(merged: Sequence[str], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[d] for d in merged)


def _neighbours(sizes: Mapping[str, int]) -> np.ndarray:
    """Return the column in the tensor's order of each of our columns 0, 1, 2, ... of a head."""
    turned = np.arange(sizes["r"]).reshape(2, -1).T.reshape(-1)
    return np.concatenate([turned, np.arange(sizes["r"], sizes["k"])])


@dataclass(frozen=True)
class Piece:
    """A tensor, or part of one, that holds our parameter `leaf` for one layer and expert.

    Attributes:
      name: the tensor's name.
      leaf: the path of our parameter.
      at: leading indices into it: a layer, an expert, or none.
      layout: the layout of the remaining dims.
    """

    name: str
    leaf: tuple[str, ...]
    at: tuple[int, ...]
    layout: Layout


def shapes_of(pieces: Sequence[Piece], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, keyed by name."""
    return {piece.name: piece.layout.shape(sizes) for piece in pieces}
