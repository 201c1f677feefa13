"""The schedule of a training step's pipeline, and how often the branches of its ticks run."""

from fractions import Fraction

import numpy as np

from parallax.bounds import Taken
from parallax.models.block import attention_shape
from parallax.parallel.layer_parts import Pipeline
from parallax.parallel.schedule_plan import plan_of
from parallax.parallel.schedules import Schedule
from parallax.programs.pass_shape import Runs
from parallax.programs.sharded_model import ShardedTransformer


def training_schedule(sharded: ShardedTransformer) -> Schedule | None:
    """Return the schedule of a training step; None without pipeline stages."""
    strategy, stages = sharded.strategy, sharded.strategy.split().count("layers")
    part = strategy.layers
    pipeline = getattr(part, "inner", part)
    if not isinstance(pipeline, Pipeline):
        return None
    return pipeline.table(part.microbatch_groups(sharded.workload.microbatches, stages), stages)


def training_branches(sharded: ShardedTransformer) -> dict[str, Taken]:
    """Return `schedule_branches` of a training step; empty without pipeline stages."""
    schedule = training_schedule(sharded)
    if schedule is None:
        return {}
    split, workload = sharded.strategy.split("train"), sharded.workload
    batch = workload.batch // split.count("act_batch") // schedule.microbatches
    is_uniform = False
    for kind in sharded.config.kinds:
        shape = attention_shape(
            sharded.config, split, batch, workload.seq_len, packed=workload.packed, kind=kind
        )
        moved = split.attention.transfers(shape, split.mesh_axes, 1)
        is_uniform |= any(t.kind == "collective-permute" for t in moved)
    return schedule_branches(schedule, is_uniform=is_uniform)


def training_runs(sharded: ShardedTransformer) -> Runs | None:
    """Return how often a device runs the parts of a training step; None without stages."""
    branches = training_branches(sharded)
    if not branches:
        return None
    runs = {scope: int(taken.executions * taken.of) for scope, taken in branches.items()}
    backward, weights = runs["stage_backward"], runs.get("stage_weights", 0)
    return Runs(
        forward=runs["stage_forward"], backward=backward + weights, weights=weights or backward,
        ends=runs["loss_of_tick"], sends=runs["handoff"], sends_back=runs["handoff_back"],
    )  # fmt: skip


def schedule_branches(schedule: Schedule, *, is_uniform: bool = False) -> dict[str, Taken]:
    """Return how often each branch of `pipeline_gradients.run_schedule` is taken per tick.

    Args:
      schedule: the table that it runs.
      is_uniform: whether all stages run whatever any stage runs, as they do where layers pass data
        around a ring.

    Returns:
      Named scope -> executions; `trips` of `read_ledger`, `module_flops` and `read_trace`.
    """
    ticks = plan_of(schedule).ticks
    on_all_stages = {
        "embed_of_tick": ticks.embeds, "embed_of_tick_back": ticks.embeds_back,
        "loss_of_tick": ticks.ends, "handoff": ticks.sends, "handoff_back": ticks.sends_back,
    }  # fmt: skip
    own = schedule.virtual_stages * schedule.microbatches
    of_stages = {f"stage_{kind}": ticks.runs[:, n] for n, kind in enumerate(schedule.kinds)}
    return {
        scope: Taken(
            Fraction(own if scope in of_stages and not is_uniform else int(runs.sum()), len(runs)),
            frozenset(map(int, np.flatnonzero(runs))), len(runs),
        )
        for scope, runs in (of_stages | on_all_stages).items()
    }  # fmt: skip
