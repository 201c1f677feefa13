"""The mixed-precision assignment: one format per slot, the least total damage under a budget.

A slot is anything with a format of its own: a layer's attention, its MLP. That damages add up is an
assumption about the model: measure the error of an assignment that you use.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One format that a slot can have.

    Attributes:
      name: the format.
      n_bytes: the slot's bytes in this format.
      damage: the predicted damage, in any unit that adds up over slots.
    """

    name: str
    n_bytes: int
    damage: float

    def __post_init__(self):
        if self.n_bytes < 0 or not math.isfinite(self.damage):
            raise ValueError(
                f"Choice {self.name!r}: expected n_bytes of at least 0 and a finite damage, got "
                f"{self.n_bytes} and {self.damage}."
            )


@dataclass(frozen=True)
class Mix:
    """The assignment of one format to each slot.

    Attributes:
      names: the formats, in the order of the slots.
      n_bytes, damage: totals over all slots.
    """

    names: tuple[str, ...]
    n_bytes: int
    damage: float


def assign_mix(slots: Sequence[Sequence[Choice]], budget: int) -> Mix:
    """Return the assignment with the least damage that takes at most `budget` bytes.

    The result is optimal: a dynamic program over slots keeps every pair (bytes, damage) that no
    other dominates, and prunes pairs that cannot beat a known solution by the Lagrangian bound of
    the remaining slots. Of equal damage, the fewest bytes win.

    Args:
      slots: the choices of each slot.
      budget: bytes on one device.

    Raises:
      ValueError: no slot, a slot without choices, or a budget below the smallest choices' bytes.

    Cost: slots x choices x pairs kept; 32 slots of 12 choices take about 0.1 s.

    Reference: Dyer, Riha, Walker, "A hybrid dynamic programming/branch-and-bound algorithm for the
      multiple-choice knapsack problem", 1995.
    """
    if not slots or not all(slots):
        raise ValueError(
            f"assign_mix: expected at least one choice for each of at least one slot, got "
            f"{[len(s) for s in slots]}."
        )
    least = sum(min(c.n_bytes for c in slot) for slot in slots)
    if least > budget:
        raise ValueError(
            f"assign_mix: the smallest formats take {least} bytes, {least - budget} more than the "
            f"budget of {budget}. Raise it, or allow stronger formats."
        )
    fronts = [_front([(c.n_bytes, c.damage, (c,)) for c in slot]) for slot in slots]
    multiplier, upper = _multiplier(fronts, budget)
    # The least that slots from i on add to damage + multiplier * bytes, and their fewest bytes.
    bounds, fewest = [0.0], [0]
    for front in reversed(fronts):
        bounds.append(bounds[-1] + min(d + multiplier * b for b, d, _ in front))
        fewest.append(fewest[-1] + front[0][0])
    bounds.reverse()
    fewest.reverse()
    slack = 1e-9 * (1 + abs(upper))
    states = [(0, 0.0, ())]
    for i, front in enumerate(fronts):
        grown = [
            (b, d, (*chosen, *choice))
            for b0, d0, chosen in states
            for b1, d1, choice in front
            if (b := b0 + b1) + fewest[i + 1] <= budget
            and (d := d0 + d1) + multiplier * (b - budget) + bounds[i + 1] <= upper + slack
        ]
        states = _front(grown)
    n_bytes, damage, chosen = states[-1]  # the last state of a front has the least damage
    return Mix(tuple(c.name for c in chosen), n_bytes, damage)


_State = tuple[int, float, tuple[Choice, ...]]


def _front(states: list[_State]) -> list[_State]:
    """Return the states that no other dominates, by rising bytes and falling damage."""
    kept: list[_State] = []
    for state in sorted(states, key=lambda s: s[:2]):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept


def _multiplier(fronts: Sequence[list[_State]], budget: int) -> tuple[float, float]:
    """Return the Lagrange multiplier, damage per byte, and the damage of one fitting assignment."""

    def at(multiplier: float) -> tuple[int, float]:
        best = [min(front, key=lambda s: (s[1] + multiplier * s[0], s[0])) for front in fronts]
        return sum(b for b, _, _ in best), math.fsum(d for _, d, _ in best)

    low, high = 0.0, 1.0
    n_bytes, damage = at(low)
    if n_bytes <= budget:
        return low, damage
    while at(high)[0] > budget:
        low, high = high, high * 8
        if high > 1e300:  # only bytes matter: take the smallest of each
            return 0.0, math.fsum(front[0][1] for front in fronts)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] > budget else (low, middle)
    return high, at(high)[1]
