"""The integers of a schedule: every slot is read while it holds what was written for the reader."""

import numpy as np
import pytest

from parallax.parallel.schedule_plan import plan_of
from parallax.parallel.schedules import make_schedule

NAMES = (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-h1", 1), ("1f1b-lockstep", 1),
         ("1f1b-lockstep", 2))  # fmt: skip
CASES = [
    (name, stages, microbatches, chunks)
    for name, chunks in NAMES
    for stages in (1, 2, 4)
    for microbatches in (1, 3, 4, 8)
    if chunks == 1 or microbatches % stages == 0
]


def misread(schedule, plan):
    """Run the plan on names instead of arrays; list the reads that find another name."""
    stages, last = schedule.stages, schedule.groups - 1
    x, gradient, kept = ([{} for _ in range(stages)] for _ in range(3))
    of, found = plan.ticks.stages, []
    for tick, row in enumerate(schedule.rows):
        for stage, action in enumerate(row):
            if action is None:
                continue
            key = action.microbatch, schedule.group(stage, action)
            at = tick, stage
            assert (of.microbatch[at], of.chunk[at]) == (action.microbatch, action.chunk)
            if action.kind == "forward":
                if key[1] == 0:
                    x[stage][of.x[at]] = key
                kept[stage][of.kept[at]] = key
                if key[1] == last:
                    gradient[stage][of.gradient[at]] = key
            else:
                found += [key] * (gradient[stage].get(of.gradient[at]) != key)
                found += [key] * (kept[stage].get(of.kept[at]) != key)
            found += [key] * (x[stage].get(of.x[at]) != key)
        for stage, action in enumerate(row):
            if action is None or action.kind == "weights":
                continue
            i, group = action.microbatch, schedule.group(stage, action)
            step = 1 if action.kind == "forward" else -1
            if 0 <= group + step <= last:
                to = (stage + step) % stages
                slots, arrives = (x, of.x_arrives) if step > 0 else (gradient, of.gradient_arrives)
                slots[to][arrives[tick, to]] = (i, group + step)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_slots_hold_what_is_read_and_are_as_many_as_in_flight(case):
    schedule = make_schedule(*case)
    plan = plan_of(schedule)
    assert not misread(schedule, plan)
    assert plan.slots.kept == schedule.peak_in_flight
    assert plan.slots.x > plan.ticks.stages.x.max()
    assert plan.slots.gradient > plan.ticks.stages.gradient.max()
    assert plan.ticks.embeds.sum() == plan.ticks.embeds_back.sum() == schedule.microbatches
    assert plan.ticks.ends.sum() == schedule.microbatches
    if case[0] == "1f1b" and schedule.stages == 4 and schedule.microbatches == 8:
        assert plan.slots == (4, 1, 4)


def test_a_misread_is_seen():
    schedule = make_schedule("1f1b", 4, 8)
    plan = plan_of(schedule)
    late = plan.ticks.stages._replace(x_arrives=np.roll(plan.ticks.stages.x_arrives, 1, 0))
    assert misread(schedule, plan._replace(ticks=plan.ticks._replace(stages=late)))
