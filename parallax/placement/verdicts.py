"""The verdicts on groups of layers: whether each fits its budget, and what would make it fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from parallax.compression import FORMATS
from parallax.models.config import ModelConfig
from parallax.placement.footprint import Footprint, layer_footprints


@dataclass(frozen=True)
class GroupVerdict:
    """The verdict on one group.

    Attributes:
      layers: layers of the model.
      n_bytes, budget: bytes that the group takes, and may take.
      would_fit: the least compressed of FORMATS whose weights would make it fit; "" if it fits
        already, or if no format would.
      tiles: pieces that its weights have to be cut into so that each fits beside the rest; 1 if
        the group fits, 0 if the rest alone does not.
    """

    layers: range
    n_bytes: int
    budget: int
    would_fit: str
    tiles: int

    @property
    def over(self) -> int:
        """The bytes over the budget; 0 if it fits."""
        return max(0, self.n_bytes - self.budget)

    @property
    def fits(self) -> bool:
        return not self.over


def verdicts(
    config: ModelConfig,
    footprints: Sequence[Footprint],
    groups: Sequence[range],
    budgets: Sequence[int],
) -> tuple[GroupVerdict, ...]:
    """Return the verdict on every group and its device's budget.

    Args:
      config: the model.
      footprints: bytes of every layer.
      groups, budgets: layers and bytes of each device.
    """
    of_groups = []
    for layers, budget in zip(groups, budgets, strict=True):
        mine = [footprints[i] for i in layers]
        total = sum(f.total for f in mine)
        rest = sum(f.total - f.weights for f in mine)
        fits = total <= budget
        of_groups.append(
            GroupVerdict(
                layers, total, budget,
                "" if fits else _would_fit(config, len(mine), rest, budget, total),
                1 if fits else _tiles(total - rest, budget - rest),
            )
        )  # fmt: skip
    return tuple(of_groups)


def _would_fit(config: ModelConfig, count: int, rest: int, budget: int, total: int) -> str:
    for name in FORMATS:
        try:
            weights = layer_footprints(config, name)[0].weights
        except ValueError:
            continue  # sizes that this format cannot store
        size = rest + count * weights
        if size <= budget and size < total:
            return name
    return ""


def _tiles(weights: int, room: int) -> int:
    return math.ceil(weights / room) if room > 0 else 0
