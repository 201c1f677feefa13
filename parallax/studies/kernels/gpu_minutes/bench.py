"""The device that the plan's items run on: the local GPU, or a rehearsal on a CPU."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from parallax.kernels.operations import BASELINES, OPERATIONS

_CALLS = 20
# (name, seconds) of each kernel launch of one call.
Launches = list[tuple[str, float]]
# The text that Mosaic adds to a kernel's name.
MOSAIC = "mosaic_gpu"


class Bench(NamedTuple):
    """The functions and sizes with which items run, on a GPU or in a rehearsal.

    Attributes:
      check_as: the implementation that is checked.
      measure: (name, function, arguments) -> the launches of each of several calls.
      read: a function like `streaming_read`.
      shrink: (operation, case) -> the case to run in its place.
      draw: (operation, case) -> the inputs of all baselines.
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
    """Return the bench of a GPU: kernels, full sizes, and times by CUPTI."""
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
    """Return the bench of a rehearsal: tiny cases by XLA, and made-up times, the longest XLA's."""

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
    """Return random arrays on the device; heads or sequences repeat, to draw less on the host."""
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
    # Sums per row are [B, H, L], the others [B, L, H, K].
    return tuple(_repeat(x, axis=x.ndim - 2, times=step.heads) for x in arrays)


def _repeat(x: Any, *, axis: int, times: int) -> jax.Array:
    return jnp.repeat(jnp.asarray(x), times, axis=axis)
