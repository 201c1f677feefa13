"""The profiler around a measured step: JAX's trace, joined with the compiled program."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from parallax.cost import Rates, rates_for
from parallax.cost.per_operation import OperationCost, operation_costs
from parallax.distributed.agreement import together
from parallax.hlo.ledger import read_ledger
from parallax.hlo.module import Module
from parallax.hlo.parse import parse_module
from parallax.hlo.read_trace import read_trace
from parallax.hlo.shapes import HloError
from parallax.lenses.profile_events import read_events
from parallax.lenses.profile_join import join
from parallax.meshes.cluster import Cluster, cluster
from parallax.meshes.gpus import GPUS
from parallax.programs.steps import ModelStep
from parallax.results.profile_results import OperationProfile

STEPS = 3  # enough for a mean; every event of every device is kept


@dataclass(frozen=True)
class ProfileTask:
    """What to profile beside a measurement.

    Attributes:
      folder: where the trace goes, in the layout that XProf and TensorBoard open.
      cluster: the GPUs whose cost model gives the modelled times; None, or one of another kind or
        size than the devices at hand, takes those at hand.
      rates: cost model constants of the cluster's GPU; None takes those shipped for it.
    """

    folder: str
    cluster: Cluster | None = None
    rates: Rates | None = None


def profile_step(
    function: Any, arguments: tuple, step: ModelStep, mesh: Mesh, task: ProfileTask
) -> OperationProfile:
    """Run a warmed-up step under JAX's profiler and join the trace with the compiled program.

    With several processes all of them have to call this. Each writes a trace of its own devices
    and joins those.

    Args:
      function: the jitted or compiled function of the step, which has run before.
      arguments: its arguments.
      step: the step that it computes.
      mesh: its devices.
      task: the folder of the trace, and what the modelled times are for.

    Raises:
      ValueError: the folder cannot be written to, or the trace has no device events.

    Cost: STEPS steps; the profiler slows a step with many small operations.
    """
    session = together("the folder of the profile", lambda: _session(task.folder))
    compiled = function if hasattr(function, "as_text") else function.lower(*arguments).compile()
    module = parse_module(compiled.as_text())

    def run() -> None:
        jax.block_until_ready(compiled(*arguments))

    _trace(run, session)
    return together("the profile", lambda: _read(session, module, step, mesh, task))


def _read(
    session: Path, module: Module, step: ModelStep, mesh: Mesh, task: ProfileTask
) -> OperationProfile:
    """Read the trace that this process wrote in a session's folder, and join it."""
    files = sorted(session.glob("*.xplane.pb"))
    if len(files) != 1:
        raise ValueError(
            f"profile: {session}: the profiler left {len(files)} traces (*.xplane.pb), expected 1. "
            "Free space, or give another folder."
        )
    device = mesh.devices.flat[0]
    trace = read_events(files[0], "gpu" if device.platform in ("gpu", "cuda", "rocm") else "cpu")
    costs, rates, notes = _costs(module, step, mesh, task)
    joined = join(module, trace, STEPS, costs, step.trips)
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    share = 1e-9 / (STEPS * len(trace.devices))
    return OperationProfile(
        trace=str(files[0]),
        device=device.device_kind,
        devices=len(trace.devices),
        steps=STEPS,
        operations=joined.operations,
        unattributed=joined.unattributed,
        busy_s=trace.busy_ns() * share,
        span_s=trace.span_ns() * share,
        runtime={name: ns * share for name, ns in trace.runtime_ns.items()},
        rates=rates,
        notes=(
            *notes,
            *(f"modelled and in no single operation: {name}" for name in joined.unplaced),
            *_missing(len(trace.devices), len(own), mesh.size),
        ),
    )


def _session(folder: str) -> Path:
    """Make the folder of a session of this process, `FOLDER/plugins/profile/SESSION`.

    Raises:
      ValueError: it cannot be made or written to.
    """
    # The process is in the name: two processes of a host would write the same file.
    name = time.strftime("%Y_%m_%d_%H_%M_%S")
    if jax.process_count() > 1:
        name += f"_process_{jax.process_index()}"
    session = Path(folder) / "plugins" / "profile" / name
    try:
        session.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=session):
            pass
    except OSError as error:
        raise ValueError(
            f"profile: {session}: {error.strerror}. Give a folder that can be written."
        ) from None
    return session


def _trace(run: Callable[[], None], session: Path) -> None:
    """Run the steps under JAX's profiler, which writes into the folder of the session."""
    options = jax.profiler.ProfileOptions()
    options.session_id = session.name
    options.python_tracer_level = 0  # of Python only the steps
    with jax.profiler.trace(str(session.parents[2]), profiler_options=options):
        for number in range(STEPS):
            with jax.profiler.StepTraceAnnotation("step", step_num=number):
                run()


def _costs(
    module: Module, step: ModelStep, mesh: Mesh, task: ProfileTask
) -> tuple[dict[str, OperationCost] | None, str, tuple[str, ...]]:
    """Return the modelled cost of each operation, what it is of, and why there is none."""
    kind = mesh.devices.flat[0].device_kind
    where, routing = _cluster_of(kind, mesh.size, task.cluster), step.routing
    if where is None:
        priced = ", ".join(g.device_kind for g in GPUS.values())
        why = "a CPU program is not priced as a GPU's" if module.platform == "cpu" else kind
        return None, "", (f"no modelled times: {why}. The cost model knows {priced}",)
    given = task.cluster is not None and task.cluster.gpu == where.gpu
    rates = rates_for(where, task.rates if given else None)
    try:
        ledger = read_ledger(
            module, dict(mesh.shape), ragged_bytes=routing and routing.ragged_bytes,
            trips=step.trips,
        )  # fmt: skip
        work = read_trace(module, ledger, step.trips)
    except HloError as error:
        return None, "", (f"no modelled times: {error}",)
    said = f"{rates.name} rates {rates.version}, {where.name}"
    return operation_costs(work, where, rates), said, ()


def _cluster_of(kind: str, devices: int, asked: Cluster | None) -> Cluster | None:
    """Return the cluster of the devices at hand: the one asked for if it is of their kind."""
    if asked is not None and (asked.gpu.device_kind, asked.devices) == (kind, devices):
        return asked
    gpu = next((g for g in GPUS.values() if g.device_kind == kind), None)
    if gpu is None or (devices > 8 and devices % 8):
        return None
    return cluster(f"{gpu.name}_{max(1, devices // 8)}x{min(8, devices)}")


def _missing(found: int, own: int, all_devices: int) -> list[str]:
    """Say which of the mesh's devices the trace does not hold."""
    said = []
    if found < own:
        said.append(f"the trace has events of {found} of this process's {own} devices")
    if own < all_devices:
        said.append(
            f"the trace of this process: {own} of the mesh's {all_devices} devices; every process "
            "wrote its own beside it"
        )
    return said
