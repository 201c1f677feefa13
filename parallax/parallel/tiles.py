"""The weight tiles of a layer, and the microbatch groups that run through them, as values."""

from typing import NamedTuple


class Tiles(NamedTuple):
    """The numbers of weight tiles in one layer.

    Attributes:
      attention: tiles of attention, cut by heads.
      mlp: tiles of the MLP, cut by width.
    """

    attention: int
    mlp: int


class MicrobatchGroup(NamedTuple):
    """A microbatch group: the microbatches that run through one weight tile before the next.

    Attributes:
      microbatches: number of microbatches, which run one after another.
      tiles: weight tiles of each layer.
    """

    microbatches: int
    tiles: Tiles
