"""How a stack of layers crosses devices and microbatches, as data.

A part runs three functions of a model on the local shards of one manual map:
  embed(inputs)     -> [b, L, D / lookup], this device's share of the width
  blocks(x, inputs) -> [b, L, D] through the layers this device holds
  keep(x)           -> what to keep of the result: [b, D] or [b, L, D]
Inputs are a pytree whose leaves have the batch first.
Shapes: B sequences on this device, M microbatches, b = B / M, S stages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.split import Split
from parallax.parallel.varying import vary_over, varying_axes


class StackFunctions(NamedTuple):
    """The model as a layer part sees it; see the module's first lines."""

    embed: Callable[[Any], jax.Array]
    blocks: Callable[[jax.Array, Any], jax.Array]
    keep: Callable[[jax.Array], jax.Array]


class LayerPart(Protocol):
    """What a strategy says about the stack of layers."""

    @property
    def stage_axes(self) -> tuple[str, ...]:
        """Mesh axes over which this part expects the layers to be split."""
        ...

    def run(
        self, functions: StackFunctions, inputs: Any, microbatches: int, split: Split
    ) -> jax.Array:
        """All B sequences, kept results in order: [B, ...], the same on every stage."""
        ...

    def ticks(self, microbatches: int, stages: int) -> int:
        """How often a device runs its layers in one forward pass."""
        ...


def _cut(inputs: Any, microbatches: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), inputs)


def _join(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])


@dataclass(frozen=True)
class Scan:
    """Every device holds all layers (its shard of each) and runs the microbatches one by one."""

    @property
    def stage_axes(self) -> tuple[str, ...]:
        return ()

    def ticks(self, microbatches: int, stages: int) -> int:
        return microbatches

    def run(self, functions, inputs, microbatches, split):
        def one(microbatch):
            x = split.widen(functions.embed(microbatch))
            return functions.keep(functions.blocks(x, microbatch))

        return _join(lax.map(one, _cut(inputs, microbatches)))


@dataclass(frozen=True)
class Pipeline:
    """GPipe: contiguous layers over `axis`; a microbatch moves one stage a tick, M + S - 1 ticks.

    Tokens are embedded inside the tick, and a handoff sends each device's share of the width
    (`lookup`), gathered again by the receiving stage in the same all-gather that widens embeddings.

    Attributes:
      axis: mesh axis of the stages.
      microbatches: M, or None for what the caller or the paper says.

    Reference: Huang et al., "GPipe", 2019.
    """

    axis: str
    microbatches: int | None = None

    @property
    def stage_axes(self) -> tuple[str, ...]:
        return (self.axis,)

    def ticks(self, microbatches: int, stages: int) -> int:
        return microbatches + stages - 1

    def run(self, functions, inputs, microbatches, split):
        stages, me = lax.axis_size(self.axis), lax.axis_index(self.axis)
        forward = [(i, i + 1) for i in range(stages - 1)]
        inputs = _cut(inputs, microbatches)

        def at(tick):
            # Before its first and after its last microbatch a stage works on a neighbour's: its
            # result is never kept, and lock-step devices would otherwise idle.
            index = jnp.clip(tick - me, 0, microbatches - 1)
            return jax.tree.map(
                lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), inputs
            )

        def tick(received, number):
            microbatch = at(number)
            mine = vary_over(functions.embed(microbatch), varying_axes(received))
            x = split.widen(jnp.where(me == 0, mine, received))
            y = functions.blocks(x, microbatch)
            with jax.named_scope("handoff"):
                sent = lax.ppermute(split.narrow(y), self.axis, forward)
            return sent, functions.keep(y)

        first = functions.embed(at(0))
        empty = vary_over(jnp.zeros_like(first), {*varying_axes(first), self.axis})
        numbers = jnp.arange(self.ticks(microbatches, stages), dtype=jnp.int32)
        _, kept = lax.scan(tick, empty, numbers)
        finished = _join(kept[stages - 1 :])
        mine = me == stages - 1
        return lax.psum(jnp.where(mine, finished, jnp.zeros_like(finished)), self.axis)


LAYER_PARTS = {"scan": Scan, "pipeline": Pipeline}
