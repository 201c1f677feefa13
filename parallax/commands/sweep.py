"""A sweep: every strategy compiled and predicted at each value of one axis."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from parallax.cost import Rates
from parallax.lenses.child import Progress
from parallax.lenses.children import each_in_children
from parallax.lenses.compiling import check_devices
from parallax.lenses.compiling_steps import compile_program
from parallax.lenses.environment import compile_environment
from parallax.lenses.predicting import predict
from parallax.meshes.cluster import Cluster, scaled
from parallax.models.config import ModelConfig
from parallax.parallel.remat import Remat
from parallax.report.words import counted
from parallax.requests.option import parse_whole
from parallax.results.lens_results import Compilation, Figure, Prediction
from parallax.results.sweep_results import Axis, PointFigures, Sweep, SweepPoint
from parallax.rules import Phase
from parallax.strategy import Strategy
from parallax.workload import Workload

AXES: dict[str, Axis] = {"devices": "devices", "seq_len": "seq_len", "batch": "batch"}
MOST_VALUES = 16


@dataclass(frozen=True)
class SweepAxis:
    """The swept axis and its increasing values."""

    axis: Axis
    values: tuple[int, ...]


def parse_sweep(text: str) -> SweepAxis:
    """Parse `axis:low..high` (doubling) or `axis:a,b,c`.

    Args:
      text: the axis is devices, seq_len or batch; numbers may end in k (1024) or M (1024 k).

    Raises:
      ValueError: another grammar, values that do not increase, or a `high` that doubling misses.
    """
    context = f"--sweep={text}"
    axis, colon, listed = text.partition(":") if isinstance(text, str) else ("", "", "")
    if not colon or axis not in AXES:
        raise ValueError(
            f"{context}: expected axis:low..high or axis:a,b,c with axis one of {', '.join(AXES)}. "
            "Write for example seq_len:4k..128k."
        )
    if ".." in listed:
        low, _, high = listed.partition("..")
        first, last = _number(low, context), _number(high, context)
        values = [first]
        while values[-1] * 2 <= last:
            values.append(values[-1] * 2)
        if values[-1] != last:
            raise ValueError(
                f"{context}: doubling from {low} does not reach {high}. End at a power of two "
                f"times {low}, or list the values: {axis}:{low},...,{high}."
            )
    else:
        values = [_number(part, context) for part in listed.split(",")]
    if any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"{context}: values must increase. Write each once, the smallest first.")
    if len(values) > MOST_VALUES:
        raise ValueError(f"{context}: {len(values)} values, at most {MOST_VALUES}. List fewer.")
    return SweepAxis(AXES[axis], tuple(values))


def _number(text: str, context: str) -> int:
    with contextlib.suppress(ValueError):
        if (value := parse_whole(text)) > 0:
            return value
    raise ValueError(
        f"{context}: expected a positive integer such as 16, 4k or 1M, got {text!r}. "
        "Write for example seq_len:4k..128k or batch:64,256."
    )


@dataclass(frozen=True)
class SweepTask:
    """One point to compile, or why it cannot be compiled."""

    point: SweepPoint
    strategy: Strategy | None = None
    cluster: Cluster | None = None


@dataclass(frozen=True)
class SweepTasks:
    """The axis of a sweep, all its points, and a sentence on what stays the same."""

    asked: SweepAxis
    tasks: tuple[SweepTask, ...]
    constant: str


def make_tasks(
    asked: SweepAxis,
    base: Workload,
    strategies: Sequence[Strategy],
    cluster: Cluster,
    rebuild: Callable[[str, Cluster], Strategy],
    fit: Callable[[Strategy, Workload], Workload],
    check: Callable[[Strategy, Workload], Any],
) -> tuple[SweepTask, ...]:
    """Return all points, strategy by strategy; those that cannot run carry the reason.

    Args:
      asked: the axis and its values.
      base: the workload; batch and length stay unless they are the axis.
      strategies: the strategies as built for `cluster`.
      cluster: the cluster whose GPUs and nodes are used.
      rebuild: builds a strategy by name for another cluster (axis devices).
      fit: sets a strategy's microbatches.
      check: raises ValueError where sizes do not divide.
    """
    tasks = []
    for strategy in strategies:
        for value in asked.values:
            point = SweepPoint(strategy.name, value)
            try:
                made, here, workload = strategy, cluster, base
                if asked.axis == "devices":
                    here = scaled(cluster, value)
                    made = rebuild(strategy.name, here)
                else:
                    workload = replace(base, **{asked.axis: value})
                point = replace(point, cluster=here.name, mesh=str(made.mesh))
                check_devices(here, made.mesh_axes)
                workload = fit(made, workload)
                check(made, workload)
                tasks.append(SweepTask(replace(point, workload=workload), made, here))
            except ValueError as error:
                tasks.append(SweepTask(replace(point, why_not=one_line(error))))
    return tuple(tasks)


def constant_words(axis: Axis, base: Workload, cluster: Cluster) -> str:
    """Return a sentence on what stays the same along the axis."""
    batch, length = counted(base.batch, "sequence"), counted(base.seq_len, "token")
    if axis == "devices":
        return (
            f"strong scaling: the whole batch stays {batch} of {length}, whatever the number of "
            f"devices; nodes of {cluster.gpus_per_node} {cluster.gpu.name}"
        )
    if axis == "seq_len":
        return f"the whole batch stays {batch} on {cluster.name}: tokens grow with the length"
    return f"the length stays {length} on {cluster.name}: tokens grow with the batch"


def run_sweep(
    config: ModelConfig,
    sweep: SweepTasks,
    phase: Phase = "prefill",
    remat: Remat = "layer",
    rates: Rates | None = None,
    *,
    on_progress: Progress,
) -> Sweep:
    """Compile and predict all points, in child processes.

    Cost: seconds per point; twice that where it does not fit; two points at a time.
    """
    able = [t for t in sweep.tasks if t.strategy is not None]
    results = each_in_children(
        compile_point, able, config, phase, remat, rates,
        environment=compile_environment(), on_progress=lambda line: on_progress(f"point {line}"),
    )  # fmt: skip
    done = iter(results)
    points = tuple(t.point if t.strategy is None else next(done) for t in sweep.tasks)
    return Sweep(sweep.asked.axis, sweep.asked.values, sweep.constant, points)


def compile_point(
    task: SweepTask,
    config: ModelConfig,
    phase: Phase = "prefill",
    remat: Remat = "layer",
    rates: Rates | None = None,
    *,
    on_progress: Progress,
) -> SweepPoint:
    """Compile a point in this process."""
    import jax

    point = task.point
    assert task.strategy is not None
    assert task.cluster is not None
    assert point.workload is not None
    on_progress(f"{point.strategy} at {point.value:,}")
    try:
        compiled = compile_program(
            config, task.strategy, point.workload, task.cluster, phase, remat,
            on_progress=lambda line: None,
        )  # fmt: skip
        predicted = predict(compiled, task.cluster, config.dtype, rates)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        return replace(point, why_not=one_line(error))
    return replace(point, found=point_figures(compiled, predicted))


def point_figures(compiled: Compilation, predicted: Prediction) -> PointFigures:
    """Return the figures that a sweep keeps of a compiled point."""
    memory = compiled.memory
    minimum = Figure(compiled.minimum_bytes, "B", "derived") if compiled.has_closed_form else None
    return PointFigures(
        memory=Figure(memory.total_bytes, "B", "compiled"),
        usable=Figure(memory.usable_bytes, "B", "assumed"),
        wire=Figure(compiled.wire_bytes, "B", "compiled"),
        minimum=minimum,
        gemm_flops=Figure(compiled.gemm_flops, "FLOP", "compiled"),
        step=predicted.step_s,
        tokens_per_s=predicted.tokens_per_s,
        bound=predicted.bound.set_by,
        ledger_matches=compiled.ledger_matches,
        notes=compiled.notes,
        unvalidated=predicted.unvalidated,
    )


def one_line(error: Exception) -> str:
    """Return the start of an error's message, without line breaks."""
    return " ".join(str(error).split())[:400]
