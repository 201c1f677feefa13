"""What `parallax plan` may use a strategy for: a slot of a candidate, and the ways to fill it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Sizes = Mapping[str, int]  # mesh axis -> size
# What a candidate splits, outermost first. A slot has at most as many devices as it has sequences,
# layers, query heads or experts; a sequence may be split over all devices.
Slot = Literal["data", "layers", "heads", "sequence", "experts"]
SLOTS: tuple[Slot, ...] = get_args(Slot)


@dataclass(frozen=True)
class Share:
    """The devices that one slot of a candidate has, more than one, and what they are given.

    Attributes:
      devices: of the slot.
      node_size: neighbours along the slot that share a node.
      heads, kv_heads, head_dim: of the model.
      all_ways: the cluster is small enough for every way to be worth a look.
    """

    devices: int
    node_size: int
    heads: int
    kv_heads: int
    head_dim: int
    all_ways: bool


# The sizes of a strategy's mesh axes that are worth a try, together the devices of the share; none
# where the strategy cannot use them.
Ways = Callable[[Share], Iterable[Sizes]]


def along(axis: str) -> Ways:
    """All devices of the share along one mesh axis."""
    return lambda share: [{axis: share.devices}]


def across_nodes(inner: str, outer: str) -> Ways:
    """One mesh axis inside nodes and one between them, where there are several whole nodes."""

    def ways(share: Share) -> Iterator[Sizes]:
        if share.devices > share.node_size > 1 and share.devices % share.node_size == 0:
            yield {outer: share.devices // share.node_size, inner: share.node_size}

    return ways
