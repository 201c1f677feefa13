"""The placement that moves the fewest bytes among those that cost no more than a limit."""

import math
from collections.abc import Collection, Sequence
from itertools import accumulate

from parallax.placement.grouping import Device, Placement


def least_moved(
    sizes: Sequence[float],
    costs: Sequence[float],
    devices: Sequence[Device],
    held: Sequence[Collection[int]],
    limit: float,
) -> Placement:
    """Return the placement, at least one layer per device, that moves the fewest bytes.

    A layer's bytes are moved if its device does not hold it. Of equal placements, the one with the
    best load balance wins: the smallest sum of squared costs.

    Args:
      sizes, costs, devices: as for `optimal`.
      held: for every device, the layers that it holds already.
      limit: the most that any group may cost, such as `optimal(...).cost`.

    Raises:
      ValueError: fewer layers than devices, or no placement within the limit and budgets.

    Cost: for N layers on P devices, N P times the layers of the largest group that fits.
    """
    if len(sizes) < len(devices):
        raise ValueError(
            f"least_moved: {len(sizes)} layers for {len(devices)} devices, and each takes one or "
            "more. Use fewer devices."
        )
    bytes_to, cost_to = (list(accumulate(x, initial=0.0)) for x in (sizes, costs))
    limit *= 1 + 1e-12
    # best[j]: (bytes moved, sum of squares, stops) with the first j layers on the devices so far.
    best: list[tuple[float, float, tuple[int, ...]] | None] = [None] * (len(sizes) + 1)
    best[0] = (0.0, 0.0, ())
    for number, (device, mine) in enumerate(zip(devices, held, strict=True)):
        moved_to = list(
            accumulate((0.0 if i in mine else s for i, s in enumerate(sizes)), initial=0.0)
        )
        extended: list[tuple[float, float, tuple[int, ...]] | None] = [None] * len(best)
        for start, before in enumerate(best):
            if before is None:
                continue
            for stop in range(start + 1, len(sizes) + 1):
                cost = (cost_to[stop] - cost_to[start]) / device.speed
                size = bytes_to[stop] - bytes_to[start]
                if cost > limit or size > device.budget * (1 + 1e-12):
                    break
                moved = before[0] + moved_to[stop] - moved_to[start]
                entry = (moved, before[1] + cost * cost, (*before[2], stop))
                old = extended[stop]
                if old is None or entry < old:
                    extended[stop] = entry
        if not any(extended):
            raise ValueError(
                f"least_moved: device {number} (budget {device.budget:.6g} bytes) can take no "
                "layer. Raise its budget, compress its layers, or leave it out."
            )
        best = extended
    if best[-1] is None:
        raise ValueError("least_moved: no placement keeps every budget and gives each a layer.")
    stops = best[-1][2]
    slowest = max(
        math.fsum(costs[a:b]) / d.speed
        for a, b, d in zip((0, *stops[:-1]), stops, devices, strict=True)
    )
    return Placement(stops, slowest)
