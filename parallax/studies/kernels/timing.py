"""Timings of kernels and their baselines on this GPU, side by side in one run.

Times are those of the GPU's kernels alone, by CUPTI, one call at a time. The ceilings are a large
bfloat16 product and a large copy in the same run. Everything is checked against float64 before it
is timed, and a wrong result gets no time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parallax.codec import encode
from parallax.kernels.operations import BASELINES, OPERATIONS
from parallax.lenses.environment import installed_versions

Progress = Callable[[str], None]
# (function, arguments) -> seconds of each of several calls.
Timer = Callable[[Callable, tuple], list[float]]
_CALLS = 20
_GEMM = 8192
_COPY_BYTES = 4 << 30
# A relative error that only a wrong kernel has with 16-bit inputs; a right one has about 0.005.
_WRONG = 0.05


def operations_named(names: Iterable[str] | None) -> list[str]:
    """Return the operations of these names, all of them for None; ValueError for an unknown one."""
    chosen = list(names or OPERATIONS)
    for name in chosen:
        if name not in OPERATIONS:
            raise ValueError(
                f"--operations: expected some of {', '.join(OPERATIONS)}; got {name!r}."
            )
    return chosen


@dataclass(frozen=True)
class Timing:
    """The timing of one baseline on one case.

    Attributes:
      operation, case, implementation: names.
      median_s, low_s, high_s: median, and 10th and 90th percentiles, of its calls; None: not run.
      tflops: the case's FLOPs over the median, in 1e12 per second.
      gb_per_s: the case's least bytes over the median, in 1e9 per second.
      share_of_floor: the least time that the ceilings allow, over the median.
      bound_by: "flops" or "bytes": the ceiling that sets this least time.
      error: relative error against float64.
      why_not: why it did not run.
    """

    operation: str
    case: str
    implementation: str
    median_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    tflops: float | None = None
    gb_per_s: float | None = None
    share_of_floor: float | None = None
    bound_by: str | None = None
    error: float | None = None
    why_not: str | None = None


def time_kernels(
    operations: Iterable[str] = tuple(OPERATIONS),
    *,
    timer: Timer,
    on_progress: Progress,
    on_record: Callable[[dict[str, Any]], object] = lambda record: None,
    cases: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, Any]:
    """Time kernels and return a record for JSON: device, versions, ceilings, rows.

    Args:
      on_record: called with the record so far after each case: a stopped run loses one case.
      cases: by operation; None takes each operation's `TIMED`.

    Cost: mostly compilation, and checks on the host.
    """
    on_progress("ceilings")
    ceilings = {
        "tflops": product_tflops(timer, _GEMM),
        "gb_per_s": copy_gb_per_s(timer, _COPY_BYTES),
    }
    record: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "versions": installed_versions(
            "jax", "jaxlib", "tokamax", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"
        ),
        "ceilings": ceilings,
        "rows": [],
    }
    for operation in operations:
        chosen = OPERATIONS[operation].TIMED if cases is None else cases[operation]
        for number, case in enumerate(chosen, 1):
            on_progress(f"{operation}, case {number} of {len(chosen)}: {case.name}")
            record["rows"] += [encode(row) for row in _time(operation, case, ceilings, timer)]
            on_record(record)
    return record


def gpu_timer() -> Timer:
    """Return a timer by CUPTI; raise ValueError if there is no GPU."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        raise ValueError(
            f"the local device is {device.device_kind!r}. Timing needs an NVIDIA GPU; "
            "docs/generated/kernels.md marks the cases that no GPU has run."
        )
    from jax.experimental.mosaic.gpu import profiler

    def timer(function, arguments):
        _, milliseconds = profiler.measure(function, iterations=_CALLS)(*arguments)
        assert milliseconds is not None, "CUPTI saw no kernel"
        return [1e-3 * float(x) for x in milliseconds]

    return timer


def _time(operation: str, case, ceilings, timer: Timer) -> list[Timing]:
    baselines = BASELINES[operation]
    arrays = tuple(map(jnp.asarray, baselines.draw(case, 0)))
    floor_s, bound_by = max(
        (case.flops / ceilings["tflops"] / 1e12, "flops"),
        (case.bytes_accessed / ceilings["gb_per_s"] / 1e9, "bytes"),
    )

    def time_one(name: str, call: Callable | str) -> Timing:
        if isinstance(call, str):
            return Timing(operation, case.name, name, why_not=call)
        run = jax.jit(call)
        try:
            error = baselines.error(case, run(*arrays), *arrays)
            if not error < _WRONG:  # NaN is not
                raise ArithmeticError(f"wrong: its relative error against float64 is {error:.1e}")
            seconds = timer(run, arrays)
        # A baseline's failure is recorded, not raised.
        except Exception as problem:
            why_not = " ".join(str(problem).split())[:200]
            return Timing(operation, case.name, name, why_not=why_not)
        low, median, high = (float(x) for x in np.percentile(seconds, (10, 50, 90)))
        return Timing(
            operation, case.name, name, median, low, high,
            tflops=case.flops / median / 1e12,
            gb_per_s=case.bytes_accessed / median / 1e9,
            share_of_floor=floor_s / median,
            bound_by=bound_by,
            error=error,
        )  # fmt: skip

    return [time_one(name, call) for name, call in baselines.baselines(case).items()]


def product_tflops(timer: Timer, size: int) -> float:
    """Measure the rate of a product of random bfloat16 matrices, size x size, in TFLOP/s."""
    keys = jax.random.split(jax.random.key(0))
    x, y = (jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys)
    seconds = timer(jax.jit(jnp.matmul), (x, y))
    return 2.0 * size**3 / float(np.median(seconds)) / 1e12


def copy_gb_per_s(timer: Timer, copy_bytes: int) -> float:
    """Measure the rate of a copy, read plus write, in GB/s; flipped bits force XLA to copy."""
    x = jax.random.bits(jax.random.key(1), (copy_bytes // 4,), jnp.uint32)
    seconds = timer(jax.jit(lambda x: ~x), (x,))
    return 2.0 * x.nbytes / float(np.median(seconds)) / 1e9
