"""Measure on this GPU how much of what a step read is still in the L2 cache at the next step.

A program flushes the cache, reads a working set (a layer's weights, say), reads other bytes (keys
and values), reads the working set again, and immediately once more. Times are of single kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parallax.codec import encode
from parallax.kernels.cache_tiled_mlp.cases import Case, inputs, program
from parallax.kernels.streaming_read import CHUNK_BYTES, LANES, streaming_read
from parallax.lenses.environment import installed_versions
from parallax.meshes.gpus import GPUS
from parallax.studies.kernels.timing import Progress, Timer

# (function, arguments) -> for each of several calls, (name, seconds) of its kernels in order.
SequenceTimer = Callable[[Callable, tuple], list[list[tuple[str, float]]]]
KERNELS = ("flush", "cold", "between", "again", "hot")
# Bytes read between two reads of the working set, as shares of the L2 cache.
BETWEEN = (0.0, 0.25, 0.5, 1.0, 2.0)
_SETS_OF_L2 = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
_FLUSH_OF_L2 = 4
# Below this share of the cold time, the cache's saving is lost in the variation of launches.
_LEAST_GAIN = 0.1
_CALLS = 20
MICROBATCHES = (1, 2, 4, 8, 16, 32, 64)
_TOKENS = 4  # per microbatch


@dataclass(frozen=True)
class Reading:
    """The median times of one program's kernels, seconds (tag: measured).

    Attributes:
      working_bytes: bytes of the working set, read three times.
      between_bytes: other bytes read between the first and the second read.
      cold_s, again_s, hot_s: first (after a flush), second and third read.
      low_s, high_s: 10th and 90th percentile of the second read.
    """

    working_bytes: int
    between_bytes: int
    cold_s: float
    again_s: float
    hot_s: float
    low_s: float
    high_s: float


def working_sets(l2_bytes: int) -> list[int]:
    """Return the bytes of the working sets, in whole chunks of the reading kernel.

    They double from 1 MB up to a quarter of the cache, then grow in finer steps to four times the
    cache.
    """
    doubled = [1 << n for n in range(20, 40) if 1 << n < l2_bytes // 4]
    return [_whole(n) for n in (*doubled, *(share * l2_bytes for share in _SETS_OF_L2))]


def resident_shares(readings: Sequence[Reading], l2_bytes: int) -> list[float | None]:
    """Compute the share of each working set that the second read found in the cache.

    The tag is measured. share = (t_cold - t_again) / (t_cold - t_hot), each a median. t_hot is the
    time with the whole set in the cache: the third read for sets of at most half the cache; for
    larger sets, the straight line through those (a launch, and a time per byte), as for a cache
    that is large enough. Shares are not clipped to 0..1: values outside show the measurement's
    error. None if t_cold - t_hot is less than a tenth of t_cold, as in sets that take less time
    than a launch; and for larger sets if there are no two smaller ones.
    """
    fitting = [r for r in readings if r.working_bytes <= l2_bytes / 2]
    line = None
    if len({r.working_bytes for r in fitting}) > 1:
        line = np.polyfit([r.working_bytes for r in fitting], [r.hot_s for r in fitting], 1)

    def share(r: Reading) -> float | None:
        hot_s = r.hot_s
        if r.working_bytes > l2_bytes / 2:
            if line is None:
                return None
            hot_s = float(np.polyval(line, r.working_bytes))
        gain = r.cold_s - hot_s
        return None if gain < _LEAST_GAIN * r.cold_s else (r.cold_s - r.again_s) / gain

    return [share(r) for r in readings]


def measure_residency(
    *,
    l2_bytes: int,
    sequence_timer: SequenceTimer,
    timer: Timer,
    on_progress: Progress,
    sets: Sequence[int] | None = None,
    mlps: Sequence[Case] | None = None,
) -> dict[str, Any]:
    """Measure and return a record for JSON: device, versions, readings with shares, MLP steps.

    Args:
      l2_bytes: bytes of the device's L2 cache.
      sets: bytes of the working sets; None is `working_sets`.
      mlps: cases of the MLP; None is `mlp_cases`.

    Cost: minutes on a GPU, most of them compilation.
    """  # fmt: skip
    sets = working_sets(l2_bytes) if sets is None else [_whole(n) for n in sets]
    readings = []
    for working in sets:
        for share in BETWEEN:
            on_progress(f"{working / 1e6:.0f} MB, {share:g} of the cache between")
            between = _whole(share * l2_bytes)
            readings.append(read(working, between, _FLUSH_OF_L2 * l2_bytes, sequence_timer))
    steps = []
    for case in mlp_cases(l2_bytes) if mlps is None else mlps:
        on_progress(f"MLP of {case.bytes_accessed / 1e6:.0f} MB, {case.tokens} tokens")
        steps.append(_step(case, timer))
    shares = resident_shares(readings, l2_bytes)
    return {
        "device": jax.devices()[0].device_kind,
        "versions": installed_versions("jax", "jaxlib"),
        "l2_bytes": l2_bytes,
        "tag": "measured",
        "readings": [
            encode(r) | {"resident_share": share} for r, share in zip(readings, shares, strict=True)
        ],
        "mlp_steps": steps,
    }


def read(working: int, between: int, flush: int, timer: SequenceTimer) -> Reading:
    """Time one program.

    Raises:
      ValueError: the timer's kernels are not those of the program.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    work_set, others, rest = map(_buffer, keys, (working, between, flush))

    @jax.jit
    def run(work_set, others, rest):
        # Each kernel waits for the one before, whose sums it takes.
        sums = jnp.zeros((1, LANES), jnp.int32)
        for name, data in zip(KERNELS, (rest, work_set, others, work_set, work_set), strict=True):
            if data.size:
                sums = streaming_read(data, sums, name=f"read_{name}")
        return sums

    calls = [_by_name(kernels, bool(between)) for kernels in timer(run, (work_set, others, rest))]
    times = {name: [call[name] for call in calls] for name in ("cold", "again", "hot")}
    cold, again, hot = (float(np.median(times[name])) for name in times)
    low, high = (float(x) for x in np.percentile(times["again"], (10, 90)))
    return Reading(working, between, cold, again, hot, low, high)


def mlp_cases(l2_bytes: int) -> list[Case]:
    """Return cases of the MLP's kernel by microbatches.

    Weights take a quarter of the cache, all of it, or are those of a full-size layer.
    """
    d_model = 1024
    widths = [int(share * l2_bytes) // (4 * d_model) // 64 * 64 for share in (0.25, 1.0)]
    sizes = [*((d_model, width) for width in widths), (8192, 32_768)]
    return [
        Case(_TOKENS * microbatches, *size, layers=1)
        for size in sizes
        for microbatches in MICROBATCHES
    ]


def gpu_at_hand() -> tuple[int, SequenceTimer]:
    """Return the bytes of the local GPU's L2 cache, and CUPTI's timer of single kernels.

    Raises:
      ValueError: the device is no known Hopper GPU.
    """
    kind = jax.devices()[0].device_kind
    gpu = next((g for g in GPUS.values() if g.device_kind == kind), None)
    if gpu is None or gpu.compute_capability != (9, 0):
        known = ", ".join(g.device_kind for g in GPUS.values() if g.compute_capability == (9, 0))
        raise ValueError(
            f"the local device is {kind!r}. The measurement needs an NVIDIA Hopper GPU: {known}; "
            "without a record docs/generated/l2_residency.md says that none has run it yet."
        )
    from jax.experimental.mosaic.gpu import profiler

    def timer(function, arguments):
        run = profiler.measure(function, aggregate=False, iterations=_CALLS)
        _, calls = run(*arguments)
        assert calls is not None, "CUPTI saw no kernel"
        return [[(name, 1e-3 * float(ms)) for name, ms in call] for call in calls]

    return gpu.l2_bytes, timer


def _by_name(kernels: Sequence[tuple[str, float]], between: bool) -> dict[str, float]:
    """Return the seconds of the reading kernels in one call, by the last part of their names."""
    expected = [name for name in KERNELS if between or name != "between"]
    reads = [
        (name, seconds)
        for kernel, seconds in kernels
        for name in KERNELS
        if f"read_{name}" in kernel
    ]
    if [name for name, _ in reads] != expected:
        seen = ", ".join(name for name, _ in kernels)
        raise ValueError(
            f"l2_residency: expected kernels {', '.join(f'read_{x}' for x in expected)} in this "
            f"order, the profiler saw {seen}. Times cannot be attributed; nothing is written."
        )
    return dict(reads)


def _step(case: Case, timer: Timer) -> dict[str, Any]:
    """Time the MLP's kernels in consecutive calls."""
    arrays = tuple(map(jnp.asarray, inputs(case, 0)))
    seconds = timer(jax.jit(program(case, "mosaic")), arrays)
    low, median, high = (float(x) for x in np.percentile(seconds, (10, 50, 90)))
    return {
        "case": case.name,
        "microbatches": case.tokens // _TOKENS,
        "weight_bytes": 2 * case.weights,
        "median_s": median,
        "low_s": low,
        "high_s": high,
    }


def _buffer(key, n_bytes: int) -> jax.Array:
    shape = (_whole(n_bytes) // 4 // LANES, LANES)
    return jax.random.randint(key, shape, 0, 1 << 30, jnp.int32)


def _whole(n_bytes: float) -> int:
    """Round up to whole chunks of the reading kernel."""
    return -(-int(n_bytes) // CHUNK_BYTES) * CHUNK_BYTES
