"""The measure lens: the step time on the devices at hand, with a confidence interval.

Where several processes were started, all of them call the same functions and use all devices.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from parallax.distributed.agreement import gather, together
from parallax.distributed.devices import check_every_process, node_notes, ordered_devices
from parallax.distributed.processes import process_index
from parallax.lenses.child import Progress
from parallax.lenses.intervals import confidence_interval
from parallax.lenses.power import LEAST_S, read_energy
from parallax.lenses.process_times import (
    of_all_processes,
    process_times,
    slowest_samples,
    together_on,
)
from parallax.lenses.profiling import ProfileTask, profile_step
from parallax.lenses.text import byte_tokens, line_segments
from parallax.models.config import ModelConfig
from parallax.programs.module_kinds import Constructor
from parallax.programs.steps import ModelStep, make_step
from parallax.results.lens_results import Figure, Measurement
from parallax.strategy import Strategy
from parallax.workload import Workload

_WARM_UPS = 2


def measure_prefill(
    model: ModelConfig | Constructor,
    strategy: Strategy,
    workload: Workload,
    text: bytes,
    repeats: int,
    profile: ProfileTask | None = None,
    *,
    on_progress: Progress = lambda line: None,
) -> Measurement:
    """Time the forward pass to last-position logits: the program that `Program.compile` compiles.

    Args:
      model, strategy, workload: what runs, on the devices of all processes.
      text: at least batch x seq_len bytes, the same on all processes.
      repeats: timed steps, each waited for, after two warm-up steps.
      profile: where to profile further steps to; None profiles none.

    Returns:
      Mean and 95 % confidence interval (Student's t) of the step time; with several processes that
      of the slowest one in each step.

    Raises:
      ValueError: fewer devices than the mesh needs, or a process without a device in the mesh.
    """
    on_progress(f"{strategy.name}: {repeats} steps")
    what = f"compiling {strategy.name}"
    mesh = together(what, lambda: mesh_at_hand(strategy))
    step = make_step(model, strategy, workload)
    function, arguments = together(what, lambda: on_devices(step, mesh, text))
    measured = _measure(function, arguments, repeats, step.sharded.name, mesh, workload)
    if profile is not None:
        found = profile_step(function, arguments, step, mesh, profile)
        measured = replace(measured, profile=found)
    notes = () if isinstance(model, ModelConfig) else step.notes
    return replace(measured, notes=(*notes, *node_notes(mesh)))


def on_devices(
    step: ModelStep, mesh: Mesh, text: bytes
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the compiled function of a prefill, and its arguments on the devices of `mesh`."""
    workload = step.workload
    tokens = byte_tokens(text, workload.batch, workload.seq_len)
    arrays = (tokens, line_segments(tokens)) if workload.packed else (tokens,)
    sharding = NamedSharding(mesh, step.sharded.abstract_inputs(mesh)[0].sharding.spec)
    inputs = (
        jax.make_array_from_callback(x.shape, sharding, x.__getitem__)
        for x in map(np.asarray, arrays)
    )
    arguments = (step.state(mesh), *inputs)
    # Compiled before the first step: no process waits in a collective for another's compiler.
    options: Any = None if mesh.devices.flat[0].platform == "cpu" else step.compiler_options
    return jax.jit(step.function(mesh)).lower(*arguments).compile(options), arguments


def mesh_at_hand(strategy: Strategy) -> Mesh:
    """Build the strategy's mesh from the devices at hand, in the order of their nodes.

    Raises:
      ValueError: too few devices, or a process of which the mesh takes none.
    """
    devices = ordered_devices()
    if len(devices) < strategy.mesh.size:
        raise ValueError(
            f"Strategy '{strategy.name}': mesh {strategy.mesh} needs {strategy.mesh.size} devices, "
            f"there are {len(devices)} ({devices[0].device_kind}). Use a smaller mesh, or run on "
            "virtual CPU devices."
        )
    mesh = strategy.mesh.build(devices[: strategy.mesh.size])
    check_every_process(mesh)
    return mesh


def _measure(
    step: Any, arguments: tuple, repeats: int, model: str, mesh: Mesh, workload: Workload
) -> Measurement:
    for _ in range(_WARM_UPS):
        jax.block_until_ready(step(*arguments))
    own = [d for d in mesh.devices.flat if d.process_index == process_index()]
    begin = together_on(mesh)
    begin()
    before = read_energy(own)
    samples = timed(step, arguments, repeats, begin)
    after = read_energy(own)
    rows = of_all_processes("the times of the steps", samples)
    slowest = slowest_samples(rows)
    used = _joules(None if before is None or after is None else after - before)
    energy = None
    if used is not None and sum(slowest) >= LEAST_S:
        note = f"NVML's counters over {repeats} steps, all devices"
        energy = Figure(used / repeats, "J", "measured", note=note)
    return Measurement(
        device=mesh.devices.flat[0].device_kind,
        devices=mesh.size,
        model=model,
        workload=workload,
        step_s=confidence_interval(slowest),
        repeats=len(slowest),
        energy_j=energy,
        processes=process_times(rows),
    )


def _joules(own: float | None) -> float | None:
    """Sum the joules that all processes counted on their devices; None if one counts none."""
    found = [json.loads(text) for text in gather("the energy of the steps", json.dumps(own))]
    return None if None in found else sum(found)


def devices_at_hand(*, on_progress: Progress = lambda line: None) -> tuple[str, str, int]:
    """Return the platform, the kind and the number of all processes' devices."""
    devices = jax.devices()
    return devices[0].platform, devices[0].device_kind, len(devices)


def timed(
    step: Any, arguments: tuple, repeats: int, begin: Callable[[], Any] = lambda: None
) -> list[float]:
    """Time each of `repeats` calls, in seconds; `begin` runs before each and is not timed."""
    samples = []
    for _ in range(repeats):
        begin()
        start = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        samples.append(time.perf_counter() - start)
    return samples
