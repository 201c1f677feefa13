"""The conversion between a folder's tensors and pieces of our parameters, whole or in slices.

Our dims: d model width, h heads, g key/value heads, k head_dim, f MLP width, v vocabulary, l
positions, e experts.
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
      theirs: dims of the tensor; merged dims share an entry: ("hk", "d").
      halves: the tensor stores the first elements of all rotary pairs, then the second ones; ours
        stores the elements of a pair side by side.
      part, parts: index and number of equal parts along the last dim of a tensor that holds
        several parameters.
    """

    ours: str
    theirs: tuple[str, ...]
    halves: bool = False
    part: int = 0
    parts: int = 1

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of the whole tensor."""
        shape = [math.prod(sizes[d] for d in merged) for merged in self.theirs]
        shape[-1] *= self.parts
        return tuple(shape)

    def cut(self, sizes: Mapping[str, int], index: Index) -> Index:
        """Return the slice of the tensor that contains a slice of our parameter.

        Of merged dims only the first is sliced; `take` slices the others.
        """
        wanted = dict(zip(self.ours, index, strict=True))
        slices = []
        for dim, merged in enumerate(self.theirs):
            inner = math.prod(sizes[d] for d in merged[1:])
            first = wanted[merged[0]] if self._is_cut(merged[0]) else slice(0, sizes[merged[0]])
            start = self.part * sizes[merged[0]] * inner if dim == len(self.theirs) - 1 else 0
            slices.append(slice(start + first.start * inner, start + first.stop * inner))
        return tuple(slices)

    def take(self, x: np.ndarray, sizes: Mapping[str, int], index: Index) -> np.ndarray:
        """Return our slice, in our order of dims, from the tensor's slice at `cut`."""
        wanted = dict(zip(self.ours, index, strict=True))
        dims = "".join(self.theirs)
        shape = []
        whole = []
        for merged in self.theirs:
            whole += [d for d in merged if d != merged[0] or not self._is_cut(d)]
            shape += [sizes[d] if d in whole else wanted[d].stop - wanted[d].start for d in merged]
        x = x.reshape(shape)
        if self.halves:
            x = np.take(x, _neighbours(sizes["k"]), axis=dims.index("k"))
        for d in whole:
            x = x[(slice(None),) * dims.index(d) + (wanted[d],)]
        return x.transpose([dims.index(d) for d in self.ours])

    def _is_cut(self, outer: str) -> bool:
        """Return whether the tensor can be sliced along this dim: not along k in halves."""
        return not (self.halves and outer == "k")

    def put(self, x: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Return our whole parameter as the tensor, or as its part of the tensor."""
        dims = "".join(self.theirs)
        x = x.transpose([self.ours.index(d) for d in dims])
        if self.halves:
            x = np.take(x, np.argsort(_neighbours(sizes["k"])), axis=dims.index("k"))
        return x.reshape([math.prod(sizes[d] for d in merged) for merged in self.theirs])


def _neighbours(head_dim: int) -> np.ndarray:
    """Return the column in halves of each of our columns 0, 1, 2, ..."""
    return np.arange(head_dim).reshape(2, -1).T.reshape(-1)


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
