"""The error bar and the energy of a cost, and the parts that no measurement validates."""

from parallax.cost.estimating import KERNEL_EFFICIENCY, Cost
from parallax.cost.rates import HOST_COPY_EFFICIENCY, Rates
from parallax.hlo.execution_trace import ExecutionTrace

_SPREAD_OF = {"exposed communication": "communication", "host copies": "memory"}


def error_bar(cost: Cost, rates: Rates) -> tuple[float, float]:
    """Compute the 80 % interval of the seconds, as if all terms were off in the same direction."""
    spreads = [(rates.spreads[_SPREAD_OF.get(n, n)], s) for n, s in cost.terms.items()]
    if between := cost.exposed_between_nodes_s:
        inside = rates.spreads["communication"]
        network = rates.spreads.get("network", inside)
        spreads += [(network, between), (inside, -between)]
    return sum(s.low * t for s, t in spreads), sum(s.high * t for s, t in spreads)


def known_error_bar(
    cost: Cost, rates: Rates, work: ExecutionTrace
) -> tuple[float | None, float | None]:
    """Return the `error_bar` of a trace's cost, without the ends that nothing known bounds.

    Work that is not priced leaves no error bar at all; a loop of unknown trip count no upper end.
    """
    low, high = error_bar(cost, rates)
    if work.unpriced:
        return None, None
    return low, None if work.open_loops else high


def joules(cost: Cost, rates: Rates) -> float:
    """Estimate the energy of one device in joules, at most its power limit times the seconds."""
    power = rates.power
    energy = power.idle_w * cost.seconds + power.flop_j * cost.flops
    energy += power.memory_byte_j * cost.memory_bytes + power.link_byte_j * cost.link_bytes
    return min(energy, power.limit_w * cost.seconds)


def unvalidated(*works: ExecutionTrace, crosses_nodes: bool) -> str:
    """Name the parts of the time that no published measurement validates, "" if there are none.

    The text completes sentences such as "no measurement stands behind the ...".
    """
    parts = []
    if crosses_nodes:
        parts.append("time between nodes")
    if any(work.hand_written for work in works):
        parts.append(
            f"time of hand-written kernels ({KERNEL_EFFICIENCY:.0%} of the rate of matrix "
            "products, assumed)"
        )
    if any(work.touches_host for work in works):
        parts.append(
            f"time of host copies ({HOST_COPY_EFFICIENCY:.0%} of PCIe's bandwidth, one "
            "measurement's share)"
        )
    if any(work.convolves for work in works):
        parts.append("time of convolutions (as the matrix products that they are)")
    if any("f8" in work.product_dtypes for work in works):
        parts.append("time of FP8 products (at INT8's rate, assumed)")
    if unpriced := dict.fromkeys(t for work in works for t in work.unpriced):
        parts.append(f"time of {', '.join(unpriced)} (unpriced)")
    return " and ".join(parts)
