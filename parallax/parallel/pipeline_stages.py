"""The parts of a pipelined training step on one microbatch, on shares of activations.

Stages hold different activations, so a share on the wire is split over the axes of the width
(`lookup`) without that of the stages. Shapes: b sequences, L tokens, D model width.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.gradients import LocalParams, TrainFunctions
from parallax.parallel.schedules import Schedule
from parallax.parallel.split import Split
from parallax.parallel.stage_layers import chunk_rows
from parallax.parallel.varying import vary_over
from parallax.parallel.width import gather_width, shard_width


@dataclass(frozen=True)
class PipelineStages:
    """A model's functions on the stages of a schedule.

    Attributes:
      schedule: the table, for the numbers of stages and chunks.
      functions: the model's functions.
      split: how the model is split.
      axis: mesh axis of the stages.
    """

    schedule: Schedule
    functions: TrainFunctions
    split: Split
    axis: str

    @property
    def me(self) -> jax.Array:
        """The number of this device's stage."""
        return lax.axis_index(self.axis)

    @property
    def is_first(self) -> jax.Array:
        """Whether this device's stage is the first."""
        return self.me == 0

    @property
    def is_last(self) -> jax.Array:
        """Whether this device's stage is the last."""
        return self.me == self.schedule.stages - 1

    @property
    def width_axes(self) -> tuple[str, ...]:
        """The mesh axes that split an activation on the wire."""
        return tuple(a for a in self.split.over("lookup") if a != self.axis)

    def widen(self, share: jax.Array) -> jax.Array:
        """Return the activation [b, L, D] of a share."""
        return gather_width(share, self.width_axes) if self.width_axes else share

    def narrow(self, x: jax.Array) -> jax.Array:
        """Return the share of an activation."""
        return shard_width(x, self.width_axes) if self.width_axes else x

    def embed(self, outer: Any, inputs: Any) -> jax.Array:
        """Return the share of the embeddings for the first stage, typed as differing by stage."""
        share = self.functions.embed(outer, inputs)
        if self.axis in self.split.over("lookup"):
            share = self.narrow(self.split.gather_width(share))
        return vary_over(share, [self.axis])

    def layers(
        self, layers: Any, share: jax.Array, inputs: Any, chunk: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], Any]:
        """Return the share of the result of a chunk's layers and their penalty, and statistics."""
        y, penalty, statistics = self.functions.blocks(layers, self.widen(share), inputs, chunk)
        statistics = jax.tree.map(lambda x: vary_over(x, [self.axis]), statistics)
        return (self.narrow(y), vary_over(penalty, [self.axis])), statistics

    def loss(self, outer: Any, share: jax.Array, inputs: Any) -> tuple[jax.Array, Any]:
        """Return the loss of the last stage's result, which goes to all stages, and what is beside.

        Cost: an all-reduce of a share over the stages, and an all-gather to full width.
        """
        own = jnp.where(self.is_last, share, jnp.zeros_like(share))
        return self.functions.loss(outer, self.widen(lax.psum(own, self.axis)), inputs)

    def chunk(self, layers: Any, number: jax.Array) -> Any:
        """Return the rows of a chunk of this device's layers."""
        chunks = self.schedule.virtual_stages
        if chunks == 1:
            return layers
        return jax.tree.map(lambda x: chunk_rows(x, number, chunks), layers)

    def add_chunk(self, total: Any, more: Any, number: jax.Array) -> Any:
        """Add the gradient of a chunk's rows to that of all rows, in its dtype."""
        if self.schedule.virtual_stages == 1:
            return jax.tree.map(lambda x, part: x + part.astype(x.dtype), total, more)

        def add(x, part):
            first = number * part.shape[0]
            old = lax.dynamic_slice_in_dim(x, first, part.shape[0])
            return lax.dynamic_update_slice_in_dim(x, old + part.astype(x.dtype), first, 0)

        return jax.tree.map(add, total, more)

    def empty_share(self, params: LocalParams, inputs: Any) -> jax.Array:
        """Return zeros with the shape, dtype and varying axes of what stages hand on."""
        share = zeros_like_type(jax.eval_shape(self.embed, params.outer, inputs))
        zero = jnp.int32(0)
        layers = self.chunk(params.layers, zero)
        (made, _), _ = jax.eval_shape(self.layers, layers, share, inputs, zero)
        return vary_over(share, sorted(made.manual_axis_type.varying))

    def hand_on(self, share: jax.Array, step: int) -> jax.Array:
        """Send a share to the stage after (step 1) or before (-1) this one.

        With chunks, the last stage hands on to the first and back.
        """
        stages = self.schedule.stages
        # Of two stages both directions are one permutation. XLA would make one computation of the
        # branches that they are in, and their counts would be one too; the order keeps them apart.
        pairs = [(s, s + step) for s in range(stages)[::step]]
        if self.schedule.virtual_stages == 1:
            pairs = [(a, b) for a, b in pairs if 0 <= b < stages]
        with jax.named_scope("handoff" if step > 0 else "handoff_back"):
            return lax.ppermute(share, self.axis, [(a, b % stages) for a, b in pairs])


def zeros_like_type(aval: Any, count: int | None = None) -> jax.Array:
    """Return zeros of a shape, dtype and varying axes, with a leading dim of `count` if given."""
    shape = aval.shape if count is None else (count, *aval.shape)
    return vary_over(jnp.zeros(shape, aval.dtype), sorted(aval.manual_axis_type.varying))
