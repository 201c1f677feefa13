"""One tensor of a folder as a piece of one of our parameters, to and fro, whole or a slice.

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
    """How a tensor's dims are ours.

    Attributes:
      ours: dims of our parameter, such as "dhk".
      theirs: dims of the tensor, several that are merged in one together: ("hk", "d").
      halves: k is stored as (first of all pairs, second of all pairs) and turns as such; here pairs
        are neighbours.
      part, parts: of a tensor that holds several of equal size along its last dim.
    """

    ours: str
    theirs: tuple[str, ...]
    halves: bool = False
    part: int = 0
    parts: int = 1

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Of the whole tensor."""
        shape = [math.prod(sizes[d] for d in merged) for merged in self.theirs]
        shape[-1] *= self.parts
        return tuple(shape)

    def cut(self, sizes: Mapping[str, int], index: Index) -> Index:
        """Where a slice of our parameter lies in the tensor; of merged dims the whole of all but
        the first, which `take` cuts."""
        wanted = dict(zip(self.ours, index, strict=True))
        found = []
        for dim, merged in enumerate(self.theirs):
            inner = math.prod(sizes[d] for d in merged[1:])
            first = wanted[merged[0]] if self._is_cut(merged[0]) else slice(0, sizes[merged[0]])
            start = self.part * sizes[merged[0]] * inner if dim == len(self.theirs) - 1 else 0
            found.append(slice(start + first.start * inner, start + first.stop * inner))
        return tuple(found)

    def take(self, x: np.ndarray, sizes: Mapping[str, int], index: Index) -> np.ndarray:
        """Of what lies at `cut`, our slice, in our order of dims."""
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
        """Whether a slice of this dim is one of the tensor: columns in halves are dealt out."""
        return not (self.halves and outer == "k")

    def put(self, x: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Inverse: our whole parameter as the tensor, or its part of it."""
        dims = "".join(self.theirs)
        x = x.transpose([self.ours.index(d) for d in dims])
        if self.halves:
            x = np.take(x, np.argsort(_neighbours(sizes["k"])), axis=dims.index("k"))
        return x.reshape([math.prod(sizes[d] for d in merged) for merged in self.theirs])


def _neighbours(head_dim: int) -> np.ndarray:
    """Where in halves our columns 0, 1, 2, ... come from."""
    return np.arange(head_dim).reshape(2, -1).T.reshape(-1)


@dataclass(frozen=True)
class Piece:
    """A tensor (or a part of one) that is our parameter `leaf` at `at` (a layer, an expert).

    Attributes:
      name: of the tensor.
      leaf: path of our parameter.
      at: leading indices into it.
      layout: of the rest.
    """

    name: str
    leaf: tuple[str, ...]
    at: tuple[int, ...]
    layout: Layout


def shapes_of(pieces: Sequence[Piece], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor."""
    return {piece.name: piece.layout.shape(sizes) for piece in pieces}
