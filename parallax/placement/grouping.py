"""The contiguous groups of layers, one per device: the papers' greedy rule, and the optimum.

The cost of a group is the sum of its layers' costs divided by its device's speed; the cost of a
placement is that of its slowest group, which all others wait for.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Device:
    """A device with a budget in bytes and a speed (1 is one unit of cost per second)."""

    budget: float
    speed: float = 1.0

    def __post_init__(self):
        if not self.budget > 0 or not self.speed > 0:
            raise ValueError(
                f"Device: budget and speed must be above 0, got {self.budget} and {self.speed}."
            )


@dataclass(frozen=True)
class Placement:
    """The groups of layers, in the order of devices.

    Attributes:
      stops: device i has the layers from stops[i - 1] up to stops[i]; equal if it has none.
      cost: the cost of the slowest group.
    """

    stops: tuple[int, ...]
    cost: float

    @property
    def groups(self) -> tuple[range, ...]:
        """The layers of each device, in order."""
        return tuple(range(a, b) for a, b in zip((0, *self.stops), self.stops, strict=False))


def greedy(sizes: Sequence[float], costs: Sequence[float], devices: Sequence[Device]) -> Placement:
    """Place layers by the papers' rule: a device takes layers as long as they fit its budget.

    Args:
      sizes, costs: bytes and cost of every layer, in order.
      devices: the devices, in order.

    Raises:
      ValueError: layers that are left over, such as one that fits no device it could go to.
    """
    _check(sizes, costs, devices)
    prefix = list(accumulate(sizes, initial=0.0))
    stops, at = [], 0
    for device in devices:
        at = bisect.bisect_right(prefix, prefix[at] + device.budget * (1 + 1e-12), lo=at) - 1
        stops.append(at)
    if at < len(sizes):
        raise ValueError(
            f"greedy: {len(devices)} devices take {at} of {len(sizes)} layers; layer {at} has "
            f"{sizes[at]:.6g} bytes. Compress it, raise the budget, or add devices."
        )
    return Placement(tuple(stops), _cost(stops, costs, devices))


def optimal(sizes: Sequence[float], costs: Sequence[float], devices: Sequence[Device]) -> Placement:
    """Return the placement whose slowest group costs least.

    Args: as for `greedy`.

    Raises:
      ValueError: no placement keeps every budget.

    Cost: for N layers on P devices, P log N per guess; about 60 guesses, and then exact steps until
      the next smaller cost fails.
    """
    _check(sizes, costs, devices)
    bytes_to, cost_to = (list(accumulate(x, initial=0.0)) for x in (sizes, costs))

    def fill(limit: float) -> list[int] | None:
        """Fill every device up to the limit; None if layers are left, so that none keeps it."""
        stops, at = [], 0
        for d in devices:
            by_bytes = bisect.bisect_right(bytes_to, bytes_to[at] + d.budget * (1 + 1e-12), lo=at)
            by_cost = bisect.bisect_right(cost_to, cost_to[at] + limit * d.speed, lo=at)
            at = max(at, min(by_bytes, by_cost) - 1)
            stops.append(at)
        return stops if at == len(sizes) else None

    high = cost_to[-1] / min(d.speed for d in devices)
    best = fill(math.inf)
    if best is None:
        greedy(sizes, costs, devices)  # its error names the layer that is left
        raise ValueError("optimal: no placement keeps every budget.")
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        filled = fill(middle)
        low, high, best = (middle, high, best) if filled is None else (low, middle, filled)
    # The interval is now below rounding. The optimum is a sum of layers: step to smaller ones until
    # one fails.
    cost = _cost(best, costs, devices)
    while (filled := fill(math.nextafter(cost, 0.0))) is not None:
        smaller = _cost(filled, costs, devices)
        if smaller >= cost:
            break
        best, cost = filled, smaller
    return Placement(tuple(best), cost)


def _cost(stops: Sequence[int], costs: Sequence[float], devices: Sequence[Device]) -> float:
    starts = (0, *stops[:-1])
    return max(math.fsum(costs[a:b]) / d.speed
               for a, b, d in zip(starts, stops, devices, strict=True))  # fmt: skip


def _check(sizes: Sequence[float], costs: Sequence[float], devices: Sequence[Device]) -> None:
    if not sizes or not devices or len(sizes) != len(costs):
        raise ValueError(
            f"placement: expected layers, a cost for each, and devices; got {len(sizes)} sizes, "
            f"{len(costs)} costs, {len(devices)} devices."
        )
    if (least := min(*sizes, *costs)) < 0:
        raise ValueError(f"placement: bytes and costs must be at least 0, got {least:.6g}.")
