"""The forward pass of a pipeline: all stages run layers in every tick, and hand their results on.

Shapes: B sequences on this device, M microbatches, b = B / M, S stages.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from parallax.parallel.gradients import cut
from parallax.parallel.schedules import in_turns
from parallax.parallel.split import Split
from parallax.parallel.varying import vary_over, varying_axes


class StackFunctions(NamedTuple):
    """The functions of a model that a layer part runs forward, on local shards.

    Attributes:
      embed: inputs -> [b, L, D / lookup], this device's share of the width.
      blocks: (x, inputs) -> [b, L, D] through the layers this device holds, and a pytree of
        statistics; (x, inputs, round) runs a microbatch group [R b, L, D] weight tile by weight
        tile, and the statistics then have a leading R; (x, inputs, chunk=) runs one chunk.
      keep: (x, inputs) -> the part of the last layer's result that the head needs: [b, D] or
        [b, L, D].
      finish: (kept, inputs) -> a pytree of results (logits, or sums of losses); None finishes
        nothing.
    """

    embed: Callable[[Any], jax.Array]
    blocks: Callable[..., tuple[jax.Array, Any]]
    keep: Callable[[jax.Array, Any], jax.Array]
    finish: Callable[[jax.Array, Any], Any] | None


def run_forward(
    functions: StackFunctions,
    inputs: Any,
    microbatches: int,
    split: Split,
    axis: str,
    lag: int = 1,
    chunks: int = 1,
) -> tuple[Any, Any]:
    """Run all microbatches through the stages.

    Args:
      functions: the model.
      inputs: pytree whose leaves have the batch first, [B, ...].
      microbatches: M.
      split: how the model is split.
      axis: mesh axis of the stages.
      lag: ticks between a stage's work on a microbatch and the next stage's, 1 or 2.
      chunks: chunks of layers of each stage; with more than 1 the lag is 1 and S divides M.

    Returns:
      As of `LayerPart.run`.
    """
    stages, me = lax.axis_size(axis), lax.axis_index(axis)
    # Stages take chunks of microbatches in turns, [chunks M]; each has a place in that order.
    turns = in_turns(stages, microbatches, chunks)
    numbers, chunk_numbers = (jnp.asarray(x, jnp.int32) for x in zip(*turns, strict=True))
    forward = [(i, (i + 1) % stages) for i in range(stages if chunks > 1 else stages - 1)]
    inputs = cut(inputs, microbatches)

    def at(place):
        # Before its first and after its last microbatch, a stage repeats that one: devices run
        # in lock-step, and the result is never kept.
        index = jnp.clip(place, 0, len(turns) - 1)
        index = index if chunks == 1 else numbers[index]
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), inputs)

    def send(share):
        with jax.named_scope("handoff"):
            return lax.ppermute(share, axis, forward)

    def tick(waiting, number):
        received, share = waiting
        arriving = send(share) if lag == 2 else None
        microbatch = at(number - lag * me)
        mine = vary_over(functions.embed(microbatch), varying_axes(received))
        enters, of_chunk = me == 0, {}
        if chunks > 1:
            chunk = chunk_numbers[jnp.clip(number - me, 0, len(turns) - 1)]
            enters, of_chunk = enters & (chunk == 0), {"chunk": chunk}
        x = split.gather_width(jnp.where(enters, mine, received))
        y, statistics = functions.blocks(x, microbatch, **of_chunk)
        # Without the barrier XLA moves the transfer after the layers, next to its use. One on y
        # also keeps the last stage's sum apart from it.
        if lag == 2:
            arriving, y = lax.optimization_barrier((arriving, y))
        share = split.shard_width(y)
        if lag == 1:
            arriving, share = send(share), None
        if functions.finish is None:
            return (arriving, share), ((), statistics)
        kept = functions.keep(y, microbatch)
        kept = split.shard_width(jnp.where(me == stages - 1, kept, jnp.zeros_like(kept)))
        last = split.gather_width(lax.psum(kept, axis))
        result = functions.finish(last, at(number - lag * (stages - 1)))
        return (arriving, share), (result, statistics)

    first = jax.eval_shape(lambda: functions.embed(at(0)))
    empty = vary_over(jnp.zeros(first.shape, first.dtype), {*varying_axes(first), axis})
    ticks = jnp.arange(len(turns) + lag * (stages - 1), dtype=jnp.int32)
    waiting = (empty, empty if lag == 2 else None)
    _, (results, statistics) = lax.scan(tick, waiting, ticks)
    statistics = jax.tree.map(
        lambda x: lax.dynamic_slice_in_dim(x, lag * me, len(turns)), statistics
    )
    if chunks == 1:
        return jax.tree.map(lambda x: x[lag * (stages - 1) :], results), statistics
    place = {turn: n for n, turn in enumerate(turns)}
    ends = np.array([place[i, chunks - 1] for i in range(microbatches)]) + stages - 1
    each = np.array([[place[i, c] for c in range(chunks)] for i in range(microbatches)])
    statistics = jax.tree.map(
        lambda x: x[each].reshape(microbatches, chunks * x.shape[1], *x.shape[2:]), statistics
    )
    return jax.tree.map(lambda x: x[ends], results), statistics
