"""What follows from a cost: its error bar, its energy, and what no measurement stands behind."""

from parallax.cost.pricing import HAND_WRITTEN_SHARE, Cost
from parallax.cost.rates import Rates
from parallax.hlo.execution_trace import ExecutionTrace

_SPREAD_OF = {"exposed communication": "communication"}


def error_bar(cost: Cost, rates: Rates) -> tuple[float, float]:
    """The 80 % interval of the seconds: each term's own, as if all were off the same way."""
    spreads = [(rates.spreads[_SPREAD_OF.get(n, n)], s) for n, s in cost.terms.items()]
    return sum(s.low * t for s, t in spreads), sum(s.high * t for s, t in spreads)


def joules(cost: Cost, rates: Rates) -> float:
    """Energy of one device, never above its power limit."""
    power = rates.power
    found = power.idle_w * cost.seconds + power.flop_j * cost.flops
    found += power.memory_byte_j * cost.memory_bytes + power.link_byte_j * cost.link_bytes
    return min(found, power.limit_w * cost.seconds)


def unvalidated(*works: ExecutionTrace, crosses_nodes: bool) -> str:
    """ "" if nothing; for sentences like "no measurement stands behind the ..."."""
    found = []
    if crosses_nodes:
        found.append("time between nodes")
    if any(work.hand_written for work in works):
        found.append(
            f"time of kernels written by hand ({HAND_WRITTEN_SHARE:.0%} of the rate of products, "
            "assumed)"
        )
    return " and ".join(found)
