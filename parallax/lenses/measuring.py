"""The measure lens: the step time on the local devices, with a confidence interval."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from scipy import stats

from parallax.lenses.child import Progress
from parallax.lenses.power import LEAST_S, read_energy
from parallax.lenses.text import byte_tokens, line_segments
from parallax.models.config import ModelConfig
from parallax.programs.module_kinds import Constructor
from parallax.programs.steps import ModelStep, make_step
from parallax.results.lens_results import Figure, Measurement
from parallax.strategy import Strategy
from parallax.workload import Workload

_WARM_UPS = 2
_CONFIDENCE = 0.95


def measure_prefill(
    model: ModelConfig | Constructor,
    strategy: Strategy,
    workload: Workload,
    text: bytes,
    repeats: int,
    *,
    on_progress: Progress = lambda line: None,
) -> Measurement:
    """Time the forward pass to last-position logits: the program that `Program.compile` compiles.

    Args:
      model, strategy, workload: what runs, on the local devices.
      text: at least batch x seq_len bytes.
      repeats: timed steps, each waited for, after two warm-up steps.

    Returns:
      Mean and 95 % confidence interval (Student's t) of the step time.

    Raises:
      ValueError: fewer devices than the mesh needs.
    """
    on_progress(f"{strategy.name}: {repeats} steps")
    mesh = mesh_at_hand(strategy)
    step = make_step(model, strategy, workload)
    function, arguments = on_devices(step, mesh, text)
    measured = _measure(function, arguments, repeats, step.sharded.name, mesh, workload)
    return measured if isinstance(model, ModelConfig) else replace(measured, notes=step.notes)


def on_devices(
    step: ModelStep, mesh: Mesh, text: bytes
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the jitted function of a prefill, and its arguments on the devices of `mesh`."""
    workload = step.workload
    tokens = byte_tokens(text, workload.batch, workload.seq_len)
    arrays = (tokens, line_segments(tokens)) if workload.packed else (tokens,)
    sharding = NamedSharding(mesh, step.sharded.abstract_inputs(mesh)[0].sharding.spec)
    inputs = (jax.device_put(jnp.asarray(x), sharding) for x in arrays)
    return jax.jit(step.function(mesh)), (step.state(mesh), *inputs)


def mesh_at_hand(strategy: Strategy) -> Mesh:
    """Build the strategy's mesh from the local devices; ValueError if they are too few."""
    devices = jax.devices()
    if len(devices) < strategy.mesh.size:
        raise ValueError(
            f"Strategy '{strategy.name}': mesh {strategy.mesh} needs {strategy.mesh.size} devices, "
            f"there are {len(devices)} ({devices[0].device_kind}). Use a smaller mesh, or run on "
            "virtual CPU devices."
        )
    return strategy.mesh.build(devices[: strategy.mesh.size])


def _measure(
    step: Any, arguments: tuple, repeats: int, model: str, mesh: Mesh, workload: Workload
) -> Measurement:
    for _ in range(_WARM_UPS):
        jax.block_until_ready(step(*arguments))
    devices = mesh.devices.flat
    before = read_energy(devices)
    samples = timed(step, arguments, repeats)
    after, energy = read_energy(devices), None
    if before is not None and after is not None and sum(samples) >= LEAST_S:
        note = f"NVML's counters over {repeats} steps, all devices"
        energy = Figure((after - before) / repeats, "J", "measured", note=note)
    return Measurement(
        device=mesh.devices.flat[0].device_kind,
        devices=mesh.size,
        model=model,
        workload=workload,
        step_s=confidence_interval(samples),
        repeats=len(samples),
        energy_j=energy,
    )


def devices_at_hand(*, on_progress: Progress = lambda line: None) -> tuple[str, str, int]:
    """Return the platform, the kind and the number of this process's devices."""
    devices = jax.devices()
    return devices[0].platform, devices[0].device_kind, len(devices)


def timed(step: Any, arguments: tuple, repeats: int) -> list[float]:
    """Time each of `repeats` calls, in seconds."""
    samples = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        samples.append(time.perf_counter() - start)
    return samples


def confidence_interval(samples: list[float]) -> Figure:
    """Compute the mean of samples in seconds, with its 95 % confidence interval."""
    mean = float(np.mean(samples))
    if len(samples) < 2:
        return Figure(mean, "s", "measured", note="one sample: no interval")
    half = stats.t.ppf((1 + _CONFIDENCE) / 2, len(samples) - 1) * stats.sem(samples)
    return Figure(mean, "s", "measured", low=mean - half, high=mean + half,
                  note=f"n={len(samples)}, 95 % CI")  # fmt: skip
