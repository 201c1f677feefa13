"""The slots of a candidate in `parallax plan`, and the ways in which a strategy can fill one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Sizes = Mapping[str, int]  # mesh axis -> size
# The things that a candidate splits, outermost first. A slot has at most as many devices as there
# are sequences, layers, query heads or experts; a sequence may be split over all devices.
Slot = Literal["data", "layers", "heads", "sequence", "experts"]
SLOTS: tuple[Slot, ...] = get_args(Slot)


@dataclass(frozen=True)
class Share:
    """The share of the devices, more than one, that one slot of a candidate gets.

    Attributes:
      devices: devices in the slot.
      node_size: consecutive devices along the slot that share a node.
      heads, kv_heads, head_dim: sizes of the model.
      all_ways: the cluster is small enough to try every way.
    """

    devices: int
    node_size: int
    heads: int
    kv_heads: int
    head_dim: int
    all_ways: bool


# The sizes of a strategy's mesh axes to try, whose product is the number of devices in the share;
# none if the strategy cannot use them.
Ways = Callable[[Share], Iterable[Sizes]]


def along(axis: str) -> Ways:
    """Put all devices of the share along one mesh axis."""
    return lambda share: [{axis: share.devices}]


def across_nodes(inner: str, outer: str) -> Ways:
    """Put one mesh axis inside nodes and one between them, given several whole nodes."""

    def ways(share: Share) -> Iterator[Sizes]:
        if share.devices > share.node_size > 1 and share.devices % share.node_size == 0:
            yield {outer: share.devices // share.node_size, inner: share.node_size}

    return ways
