"""What the items of the plan run on: the GPU at hand, or a rehearsal on a CPU."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from parallax.kernels.operations import BASELINES, OPERATIONS

_CALLS = 20
# (name, seconds) of each launch of one call.
Launches = list[tuple[str, float]]
# What Mosaic adds to the name of a kernel.
MOSAIC = "mosaic_gpu"


class Bench(NamedTuple):
    """One of the two.

    Attributes:
      check_as: the implementation that is checked.
      measure: (name, function, arguments) -> the launches of each of several calls.
      read: as `streaming_read`.
      shrink: (operation, case) -> the case to run in its place.
      draw: (operation, case) -> what all baselines take.
      product, copy_bytes, read_bytes: sizes of the ceilings and the streaming read.
    """

    check_as: str
    measure: Callable[[str, Callable, tuple], list[Launches]]
    read: Callable[[jax.Array, jax.Array], jax.Array]
    shrink: Callable[[str, Any], Any]
    draw: Callable[[str, Any], tuple[jax.Array, ...]]
    product: int
    copy_bytes: int
    read_bytes: int


def on_gpu() -> Bench:
    """Kernels, full sizes, and times by CUPTI."""
    from jax.experimental.mosaic.gpu import profiler

    from parallax.kernels.streaming_read import streaming_read

    def measure(name, function, arguments):
        _, calls = profiler.measure(function, aggregate=False, iterations=_CALLS)(*arguments)
        assert calls is not None, f"{name}: CUPTI saw no kernel"
        return [[(kernel, 1e-3 * ms) for kernel, ms in launches] for launches in calls]

    return Bench(
        "mosaic", measure, streaming_read, lambda _, case: case, draw, 8192, 4 << 30, 1 << 30
    )


def rehearsal() -> Bench:
    """Tiny cases by XLA in place of kernels, and made-up times, XLA's twice those of others."""

    def measure(name, function, arguments):
        del function, arguments
        return [[(f"{name}_{MOSAIC}_kernel", 2e-3 if name == "xla" else 1e-3)]] * 3

    def read(data, after):
        return after + jnp.sum(data, axis=0, dtype=jnp.int32)[None]

    def shrink(operation, case):
        del case
        return OPERATIONS[operation].SMALL[0]

    return Bench("xla", measure, read, shrink, lambda *_: (), 64, 1 << 12, 1 << 14)


def draw(operation: str, case: Any) -> tuple[jax.Array, ...]:
    """Random arrays on the device. Heads or sequences repeat: drawing on the host takes long."""
    drawn = BASELINES[operation].draw
    if operation == "decode_attention":
        few, repeat = case._replace(batch=1), functools.partial(_repeat, axis=0, times=case.batch)
        return tuple(map(repeat, drawn(few, 0)))
    if operation not in ("ring_attention", "ring_attention_backward"):
        return tuple(map(jnp.asarray, drawn(case, 0)))
    step = getattr(case, "step", case)
    assert step.heads == step.kv_heads, "one head stands for all"
    few = step._replace(heads=1, kv_heads=1)
    arrays = drawn(few if step is case else case._replace(step=few), 0)
    # Sums of rows are [B, H, L], the others [B, L, H, K].
    return tuple(_repeat(x, axis=x.ndim - 2, times=step.heads) for x in arrays)


def _repeat(x: Any, *, axis: int, times: int) -> jax.Array:
    return jnp.repeat(jnp.asarray(x), times, axis=axis)
