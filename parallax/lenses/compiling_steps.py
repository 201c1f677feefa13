"""Lowering and compiling a model under a strategy, in this process."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from parallax.lenses.child import Progress
from parallax.lenses.compiling import compile_for, trace_function
from parallax.meshes.cluster import Cluster
from parallax.programs.steps import ModelStep, Phase, Remat, Training, make_step
from parallax.results.lens_results import Compilation
from parallax.strategy import Strategy
from parallax.workload import Workload

if TYPE_CHECKING:
    from parallax.lenses.user_function import UserProgram


def _quiet(line: str) -> None:
    pass


def compile_program(
    model: Any,
    strategy: Strategy,
    workload: Workload,
    cluster: Cluster,
    phase: Phase = "prefill",
    remat: Remat = "layer",
    *,
    on_progress: Progress,
) -> Compilation:
    """Compile one program in this process, as `Program.compile` does in its child process."""
    step = make_step(model, strategy, workload, phase, remat)
    return compile_step(step, cluster, on_progress=on_progress)


def compile_step(
    step: ModelStep, cluster: Cluster, *, on_progress: Progress = _quiet
) -> Compilation:
    """Compile a step for a cluster in this process, and compare it with its derived figures."""
    strategy, routing = step.sharded.strategy, step.routing
    on_progress(f"{strategy.name} for {cluster.name}")
    compilation = compile_for(
        cluster,
        step.function,
        step.arguments,
        strategy.mesh,
        workload=step.workload,
        phase=step.phase,
        transfers=step.transfers(),
        kv_cache_bytes=step.kv_cache_bytes(),
        weight_bytes=step.weight_bytes(),
        partitioner=step.sharded.partitioner,
        donate=step.donated,
        compiler_options=step.compiler_options,
        trips=step.trips,
        ragged_bytes=routing and routing.ragged_bytes,
        load_balance=step.load_balance(),
        notes=step.notes,
        on_progress=on_progress,
    )
    remat = step.program.remat if isinstance(step, Training) else ""
    return replace(compilation, remat=remat)


def lower_step(step: ModelStep, cluster: Cluster) -> "UserProgram":
    """Trace and lower a step for a cluster in this process.

    Raises:
      ValueError: the strategy's mesh and the cluster differ in their number of devices.
    """
    from parallax.lenses.user_function import UserProgram

    mesh = step.sharded.strategy.mesh
    traced, built, _, refused = trace_function(
        cluster, step.function, step.arguments, mesh, step.donated
    )
    return UserProgram(traced, traced.lower(), built, (*step.notes, *refused))
