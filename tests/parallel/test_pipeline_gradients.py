"""The interpreter of schedules: loss and gradients of every table equal one device's."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from parallax.parallel import pipeline_gradients
from parallax.parallel.pipeline_stages import PipelineStages
from parallax.parallel.remat import Remat
from parallax.parallel.schedule_plan import plan_of
from parallax.parallel.schedules import Action, make_schedule
from tests.parallel.pipelines import error, pipelined, reference
from tests.selection import in_turns

LAYERS = 8
NAMES = (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zb-h1", 1))
# Stages of 2 with a data axis, and of 4 without.
MESHES = {2: {"data": 2, "stage": 2, "tensor": 2}, 4: {"stage": 4, "tensor": 2}}


def off(schedule, remat: Remat = "none", **options):
    """The error of a schedule's loss and gradients against one device's."""
    mesh = MESHES[schedule.stages]
    sequences = 2 * schedule.microbatches
    run, arguments = pipelined(schedule, LAYERS, sequences, remat, mesh, **options)
    return error(run(*arguments), reference(LAYERS, sequences))


@pytest.mark.parametrize("remat", in_turns(["none", "layer"], 2, pytest.mark.exhaustive))
@pytest.mark.parametrize(
    ("stages", "microbatches"),
    [pytest.param(2, 1, marks=pytest.mark.exhaustive), (4, 3),
     pytest.param(2, 8, marks=pytest.mark.full)],
)  # fmt: skip
@pytest.mark.parametrize(("name", "chunks"), NAMES)
def test_every_schedule_equals_one_device(name, chunks, stages, microbatches, remat):
    if name == "interleaved":
        microbatches = -(-microbatches // stages) * stages
    schedule = make_schedule(name, stages, microbatches, chunks)
    lookup = ("stage", "tensor") if microbatches == 8 else ("tensor",)
    assert off(schedule, remat, lookup=lookup) <= 1e-11


@pytest.mark.parametrize(("name", "chunks"), [("1f1b", 1), ("interleaved", 2)])
def test_layers_may_pass_data_around_a_ring(name, chunks):
    assert off(make_schedule(name, 2, 4, chunks), ring=("data",)) <= 1e-11


def test_a_backward_that_runs_twice_is_caught():
    schedule = make_schedule("1f1b", 2, 4)
    rows = (*schedule.rows, (Action("backward", 0), None))
    assert off(dataclasses.replace(schedule, rows=rows)) > 1e-2


def test_a_handoff_one_tick_late_is_caught(monkeypatch):
    def late(schedule):
        plan = plan_of(schedule)
        of = plan.ticks.stages
        of = of._replace(gradient_arrives=np.roll(of.gradient_arrives, 1, 0))
        return plan._replace(ticks=plan.ticks._replace(stages=of))

    monkeypatch.setattr(pipeline_gradients, "plan_of", late)
    assert off(make_schedule("1f1b", 2, 4)) > 1e-2


def test_the_handoffs_of_two_stages_stay_two_computations():
    """Else XLA makes one of the branches around them, and their counts are one too."""
    unused: Any = None
    stages = PipelineStages(make_schedule("interleaved", 2, 4, 2), unused, unused, "stage")
    after, before = (
        jax.make_jaxpr(lambda x, step=step: stages.hand_on(x, step), axis_env=[("stage", 2)])(1.0)
        for step in (1, -1)
    )
    perms = [made.eqns[-1].params["perm"] for made in (after, before)]
    assert sorted(perms[0]) == sorted(perms[1])
    assert perms[0] != perms[1]
