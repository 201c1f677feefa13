"""The mildest mix of formats under a budget: one choice a slot, the least damage in all, exactly.

A slot is whatever has a format of its own: a layer's attention, its MLP. Damages add up: that is an
assumption about the model, and whoever applies a mix should measure what it comes to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One way to store a slot.

    Attributes:
      name: of the format.
      n_bytes: that the slot then takes.
      damage: predicted, in any unit that adds up over slots.
    """

    name: str
    n_bytes: int
    damage: float

    def __post_init__(self):
        if self.n_bytes < 0 or not math.isfinite(self.damage):
            raise ValueError(
                f"Choice {self.name!r}: expected bytes from 0 on and a finite damage, got "
                f"{self.n_bytes} and {self.damage}."
            )


@dataclass(frozen=True)
class Mix:
    """One choice a slot.

    Attributes:
      names: of the formats, in order of the slots.
      n_bytes, damage: of all slots.
    """

    names: tuple[str, ...]
    n_bytes: int
    damage: float


def mildest_mix(slots: Sequence[Sequence[Choice]], budget: int) -> Mix:
    """The choices that do the least damage and together take at most `budget` bytes.

    Optimal, not greedy: a dynamic programme over slots keeps every pair (bytes, damage) that no
    other beats in both. What cannot beat a solution at hand is left out early, by the Lagrangian
    bound of the slots to come. Of equal damage the fewest bytes are taken.

    Args:
      slots: choices of each.
      budget: bytes of one device.

    Raises:
      ValueError: no slot, a slot without choices, or a budget that the smallest ones pass.

    Cost: slots x choices x pairs kept; 32 slots of 12 choices take about 0.1 s.

    Reference: Dyer, Riha, Walker, "A hybrid dynamic programming/branch-and-bound algorithm for the
      multiple-choice knapsack problem", 1995.
    """
    if not slots or not all(slots):
        raise ValueError(
            f"mildest_mix: expected at least one choice for each of at least one slot, got "
            f"{[len(s) for s in slots]}."
        )
    least = sum(min(c.n_bytes for c in slot) for slot in slots)
    if least > budget:
        raise ValueError(
            f"mildest_mix: the smallest formats take {least} bytes, {least - budget} more than the "
            f"budget of {budget}. Raise it, or allow stronger formats."
        )
    fronts = [_front([(c.n_bytes, c.damage, (c,)) for c in slot]) for slot in slots]
    price, upper = _price(fronts, budget)
    # The least that slots from i on add to damage + price * bytes, and their fewest bytes.
    bounds, fewest = [0.0], [0]
    for front in reversed(fronts):
        bounds.append(bounds[-1] + min(d + price * b for b, d, _ in front))
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
            and (d := d0 + d1) + price * (b - budget) + bounds[i + 1] <= upper + slack
        ]
        states = _front(grown)
    n_bytes, damage, chosen = states[-1]  # the least damage is the last of a front
    return Mix(tuple(c.name for c in chosen), n_bytes, damage)


_State = tuple[int, float, tuple[Choice, ...]]


def _front(states: list[_State]) -> list[_State]:
    """Those that no other beats in bytes and damage, by rising bytes and falling damage."""
    kept: list[_State] = []
    for state in sorted(states, key=lambda s: s[:2]):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept


def _price(fronts: Sequence[list[_State]], budget: int) -> tuple[float, float]:
    """A damage a byte that makes the Lagrangian bound good, and the damage of a mix that fits."""

    def at(price: float) -> tuple[int, float]:
        best = [min(front, key=lambda s: (s[1] + price * s[0], s[0])) for front in fronts]
        return sum(b for b, _, _ in best), math.fsum(d for _, d, _ in best)

    low, high = 0.0, 1.0
    n_bytes, damage = at(low)
    if n_bytes <= budget:
        return low, damage
    while at(high)[0] > budget:
        low, high = high, high * 8
        if high > 1e300:  # bytes alone decide: the smallest of each
            return 0.0, math.fsum(front[0][1] for front in fronts)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] > budget else (low, middle)
    return high, at(high)[1]
