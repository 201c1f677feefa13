"""Pipeline schedules: valid tables of every size, and the closed forms of their figures."""

import dataclasses

import jax.numpy as jnp
import pytest

from parallax.parallel.schedules import (
    SCHEDULES,
    Action,
    make_schedule,
    needed,
    step_time,
)
from parallax.parallel.stage_layers import layers_in_place, pad_layers, unpad_layers

SIZES = [(s, m) for s in (1, 2, 3, 4, 8) for m in (1, 2, 3, 4, 5, 8, 16)]
CASES = [
    (name, stages, microbatches, chunks)
    for stages, microbatches in SIZES
    for name in SCHEDULES
    for chunks in {"interleaved": (2, 3), "1f1b-lockstep": (1, 2)}.get(name, (1,))
    if chunks == 1 or microbatches % stages == 0
]


def faults(schedule):
    """What is wrong with a table: an action that is missing, repeated, or too early."""
    done, found = {}, []
    for tick, row in enumerate(schedule.rows):
        for stage, action in enumerate(row):
            if action is not None:
                key = (action.kind, action.microbatch, schedule.group(stage, action))
                found += [f"{key} twice"] * (key in done)
                done[key] = tick
    for kind, microbatch, group in done:
        for before, other in needed(kind, group, schedule.groups):
            if done.get((before, microbatch, other), 10**9) >= done[kind, microbatch, group]:
                found.append(f"{kind, microbatch, group} before {before, other}")
    whole = {(k, i, g) for k in schedule.kinds for i in range(schedule.microbatches)
             for g in range(schedule.groups)}  # fmt: skip
    return found + [f"{key} missing or unknown" for key in whole ^ set(done)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_table_is_valid_and_its_figures_are_the_closed_forms(case):
    name, stages, microbatches, chunks = case
    schedule = make_schedule(*case)
    assert not faults(schedule)
    s, m, v = stages, microbatches, chunks
    ticks = {
        "gpipe": 2 * (m + s - 1),
        "1f1b": 2 * (m + s - 1),
        "interleaved": 2 * (v * m + s - 1),
        "zb-h1": 3 * m + s - 1 + max(0, s - m),
        "1f1b-lockstep": 2 * (v * m + s - 1),
    }
    assert schedule.ticks == ticks[name]
    held = [schedule.in_flight(stage) for stage in range(s)]
    if name == "gpipe":
        assert held == [m] * s
    elif name == "1f1b":
        assert held == [min(m, s - stage) for stage in range(s)]
    elif name == "zb-h1":
        assert max(held) <= min(m, s)
    elif name == "1f1b-lockstep":
        assert held == [min(v * m, (v + 1) * s - 1 - 2 * stage) for stage in range(s)]
        assert all(len({action.kind for action in row if action}) == 1 for row in schedule.rows)
    else:
        most = [2 * (s - 1 - stage) + (v - 1) * s + 1 for stage in range(s)]
        assert held == [min(n, v * m) for n in most]
    bubble = (s - 1 + max(0, s - m)) / (3 * m) if name == "zb-h1" else (s - 1) / (v * m)
    assert schedule.bubble == pytest.approx(bubble)
    assert schedule.handoffs == m * (v * s - 1)
    equal = step_time(schedule, [1.0] * s, [1.0] * s, [1.0 * schedule.splits_backward] * s)
    assert equal == (schedule.ticks, schedule.ticks)


def test_faults_are_seen():
    schedule = make_schedule("1f1b", 3, 4)
    rows = schedule.rows
    assert faults(dataclasses.replace(schedule, rows=(rows[1], rows[0], *rows[2:])))
    assert faults(dataclasses.replace(schedule, rows=rows[:-1]))
    assert faults(dataclasses.replace(schedule, rows=(*rows, (Action("backward", 0), None, None))))


def test_rows_of_one_kind_are_shorter_where_stages_wait_for_each_other():
    equal, twice = [1.0] * 4, [2.0] * 4
    plain, rows = (make_schedule(name, 4, 8) for name in ("1f1b", "1f1b-lockstep"))
    # 11 microbatches' forward and backward; a tick of 1F1B mostly has a backward somewhere.
    assert step_time(plain, equal, twice, [0.0] * 4) == (33.0, 40.0)
    assert step_time(rows, equal, twice, [0.0] * 4) == (33.0, 33.0)
    assert (plain.peak_in_flight, rows.peak_in_flight) == (4, 7)


def test_a_schedule_of_unequal_stages_takes_as_long_as_its_slowest():
    schedule = make_schedule("1f1b", 2, 2)
    # Stage 0: F0 F1 . B0 . B1; stage 1: . F0 B0 F1 B1.
    time = step_time(schedule, [1.0, 2.0], [3.0, 5.0], [0.5, 0.5])
    assert time.lockstep == 1 + 2 + 5.5 + 3.5 + 5.5 + 3.5
    # Stage 1 is busy from second 1 on, until its last backward at 16, and stage 0's follows it.
    assert time.asynchronous == 1 + 2 * (2 + 5.5) + 3.5
    split = step_time(make_schedule("zb-h1", 2, 2), [1.0, 1.0], [1.0, 1.0], [1.0, 1.0])
    assert split.asynchronous == split.lockstep == 7.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dualpipe", 2, 2), "none of gpipe, 1f1b"),
        (("1f1b", 2, 0), "at least 1"),
        (("1f1b", 2, 2, 2), "'1f1b' got 2 virtual stages"),
        (("interleaved", 2, 2), "at least 2"),
        (("interleaved", 2, 3, 2), "do not divide 3 microbatches"),
    ],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(*arguments)


def test_stages_hold_their_chunks_one_after_the_other():
    assert layers_in_place((4, 4), 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    whole = jnp.arange(12)
    stored = pad_layers(whole, (6, 6), 3)
    assert stored.tolist() == layers_in_place((6, 6), 3).tolist()
    assert unpad_layers(stored, (6, 6), 3).tolist() == whole.tolist()
    # Unequal stages and one chunk as before.
    assert layers_in_place((2, 1)).tolist() == [0, 1, 2, -1]
