"""What follows from a cost: its error bar, and the energy it takes."""

from parallax.cost.pricing import Cost
from parallax.cost.rates import Rates

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
