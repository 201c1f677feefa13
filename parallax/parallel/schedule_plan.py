"""A schedule as the integers that a compiled loop over its ticks reads.

Activations and gradients wait in slots between the tick in which they are made and the one in which
they are last read; a slot is used again as soon as it is free.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from parallax.parallel.schedules import Action, Schedule


class StagePlan(NamedTuple):
    """What the stages do, int32 [ticks, S] each.

    Attributes:
      kind: 0 is idle, then 1 + the place in the schedule's kinds.
      microbatch, chunk: of the action; 0 where a stage is idle.
      x, gradient, kept: slots of the action's input, its output's gradient and what it keeps.
      x_arrives, gradient_arrives: slots for what arrives at the end of a tick; -1 is nothing.
    """

    kind: Any
    microbatch: Any
    chunk: Any
    x: Any
    gradient: Any
    kept: Any
    x_arrives: Any
    gradient_arrives: Any


class TickPlan(NamedTuple):
    """What happens in the ticks, bool [ticks, ...] each, the same on all stages.

    Attributes:
      stages: what each stage does.
      runs: [ticks, kinds], whether any stage runs each kind of action.
      embeds, embeds_back: whether the first stage runs a forward or backward of the first group.
      ends: whether the last stage runs a forward of the last group.
      sends, sends_back: whether any stage hands on an activation or a gradient.
    """

    stages: StagePlan
    runs: Any
    embeds: Any
    embeds_back: Any
    ends: Any
    sends: Any
    sends_back: Any


class Slots(NamedTuple):
    """The numbers of slots of inputs, of outputs' gradients, and of what forwards keep."""

    x: int
    gradient: int
    kept: int


class Plan(NamedTuple):
    """A schedule's ticks, and the slots that they use."""

    ticks: TickPlan
    slots: Slots


def plan_of(schedule: Schedule) -> Plan:
    """Return the integers of a schedule."""
    shape = schedule.ticks, schedule.stages
    kind, microbatch, chunk, x, gradient, kept = (np.zeros(shape, np.int32) for _ in range(6))
    x_arrives, gradient_arrives = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    ticks = {
        (action.kind, action.microbatch, schedule.group(stage, action)): tick
        for tick, row in enumerate(schedule.rows)
        for stage, action in enumerate(row)
        if action is not None
    }
    last, most = schedule.groups - 1, [1, 1, 1]
    for stage in range(schedule.stages):
        spans = _spans(schedule, ticks, stage)
        places = [_slots((start, stop, key) for key, (start, stop) in s.items()) for s in spans]
        most = [max(n, 1 + max(p.values())) for n, p in zip(most, places, strict=True)]
        for tick, row in enumerate(schedule.rows):
            if (action := row[stage]) is None:
                continue
            key = action.microbatch, schedule.group(stage, action)
            at = tick, stage
            kind[at] = 1 + schedule.kinds.index(action.kind)
            microbatch[at], chunk[at] = action.microbatch, action.chunk
            x[at], gradient[at], kept[at] = (p[key] for p in places)
        for key, (start, _) in spans[0].items():
            if key[1] > 0:
                x_arrives[start, stage] = places[0][key]
        for key, (start, _) in spans[1].items():
            if key[1] < last:
                gradient_arrives[start, stage] = places[1][key]

    def is_done(tick: int, stage: int, kind: str, chunk: int) -> bool:
        action: Action | None = schedule.rows[tick][stage]
        return action is not None and (action.kind, action.chunk) == (kind, chunk)

    def each(stage: int, kind: str, chunk: int) -> np.ndarray:
        return np.array([is_done(t, stage, kind, chunk) for t in range(schedule.ticks)])

    of_stages = StagePlan(kind, microbatch, chunk, x, gradient, kept, x_arrives, gradient_arrives)
    numbers = np.arange(1, 1 + len(schedule.kinds))
    ticks_of = TickPlan(
        of_stages,
        runs=(kind[:, :, None] == numbers).any(1),
        embeds=each(0, "forward", 0),
        embeds_back=each(0, "backward", 0),
        ends=each(schedule.stages - 1, "forward", schedule.virtual_stages - 1),
        sends=(x_arrives >= 0).any(1),
        sends_back=(gradient_arrives >= 0).any(1),
    )
    return Plan(ticks_of, Slots(*most))


_Span = dict[tuple[int, int], tuple[int, int]]


def _spans(schedule: Schedule, ticks: dict, stage: int) -> tuple[_Span, _Span, _Span]:
    """Return from the end of which tick, and up to which, a stage holds each array.

    The keys are (microbatch, group); arrays are inputs, gradients of outputs, and what is kept.
    """
    x, gradient, kept = {}, {}, {}
    ending = schedule.kinds[-1]
    for group in range(stage, schedule.groups, schedule.stages):
        for i in range(schedule.microbatches):
            forward, stop = ticks["forward", i, group], ticks[ending, i, group]
            # The embedding is written before the layers of its tick run.
            x[i, group] = (ticks["forward", i, group - 1] if group else forward - 1, stop)
            ended = group == schedule.groups - 1
            gradient[i, group] = (forward if ended else ticks["backward", i, group + 1], stop)
            kept[i, group] = (forward - 1, stop)
    return x, gradient, kept


def _slots(spans: Iterable[tuple[int, int, tuple[int, int]]]) -> dict[tuple[int, int], int]:
    """Give each span the first slot that is free: one may start as another stops."""
    stops: list[int] = []
    places = {}
    for start, stop, key in sorted(spans):
        free = next((n for n, s in enumerate(stops) if s <= start), len(stops))
        stops[free:] = [stop, *stops[free + 1 :]]
        places[key] = free
    return places
