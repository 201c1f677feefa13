"""Into how many slabs a layer's weights are cut, and what goes through each together, as data."""

from typing import NamedTuple


class Tiles(NamedTuple):
    """Slabs of one layer.

    Attributes:
      attention: by heads.
      mlp: by width.
    """

    attention: int
    mlp: int


class Round(NamedTuple):
    """Microbatches that a slab serves before the next one.

    Attributes:
      microbatches: how many, one after the other.
      tiles: slabs of each layer.
    """

    microbatches: int
    tiles: Tiles
