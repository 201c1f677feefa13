"""How a stack of layers crosses devices and microbatches, as data.

A part runs four functions of a model on the local shards of one manual map:
  embed(inputs)     -> [b, L, D / lookup], this device's share of the width
  blocks(x, inputs) -> [b, L, D] through the layers this device holds, and a pytree of statistics;
    blocks(x, inputs, round) of [R b, L, D], the microbatches of a round, slab by slab: statistics
    then have a leading R
  keep(x, inputs)   -> what the model's end needs of the last layer's result: [b, D] or [b, L, D]
  finish(kept, inputs) -> a pytree of results (logits, or sums of losses)
Inputs are a pytree whose leaves have the batch first.
Shapes: B sequences on this device, M microbatches, b = B / M, S stages.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from parallax.parallel.split import Split
from parallax.parallel.tiles import Round, Tiles
from parallax.parallel.varying import vary_over, varying_axes

Handoff = Literal["auto", "lockstep", "overlapped"]


class StackFunctions(NamedTuple):
    """The model as a layer part sees it; see the module's first lines."""

    embed: Callable[[Any], jax.Array]
    blocks: Callable[..., tuple[jax.Array, Any]]
    keep: Callable[[jax.Array, Any], jax.Array]
    finish: Callable[[jax.Array, Any], Any]


class LayerPart(Protocol):
    """What a strategy says about the stack of layers."""

    @property
    def stage_axes(self) -> tuple[str, ...]:
        """Mesh axes over which this part expects the layers to be split."""
        ...

    def groups(self, num_layers: int, stages: int) -> tuple[int, ...]:
        """Layers of each stage, in order. ValueError if they cannot be dealt out."""
        ...

    def run(
        self, functions: StackFunctions, inputs: Any, microbatches: int, split: Split
    ) -> tuple[Any, Any]:
        """All microbatches.

        Returns:
          Results of `finish`, each leaf with a leading number of rounds, the same on every stage;
          statistics of this device's layers, each leaf with a leading M.
        """
        ...

    def rounds(self, microbatches: int, stages: int) -> int:
        """Passes through the layers that the microbatches are gathered into; mostly M."""
        ...

    def ticks(self, microbatches: int, stages: int) -> int:
        """How often a device runs its layers in one forward pass."""
        ...


def _cut(inputs: Any, microbatches: int) -> Any:
    return jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), inputs)


def _remember(body: Callable, split: Split) -> Callable:
    """`body` of a loop over microbatches, its inside recomputed in the backward pass if asked."""
    return body if split.remat == "none" else jax.checkpoint(body, prevent_cse=False)


@dataclass(frozen=True)
class Scan:
    """Every device holds all layers (its shard of each) and runs the microbatches one by one."""

    @property
    def stage_axes(self) -> tuple[str, ...]:
        return ()

    def groups(self, num_layers: int, stages: int) -> tuple[int, ...]:
        return (num_layers,)

    def rounds(self, microbatches: int, stages: int) -> int:
        return microbatches

    def ticks(self, microbatches: int, stages: int) -> int:
        return microbatches

    def run(self, functions, inputs, microbatches, split):
        def one(_, microbatch):
            x = split.widen(functions.embed(microbatch))
            y, statistics = functions.blocks(x, microbatch)
            return None, (functions.finish(functions.keep(y, microbatch), microbatch), statistics)

        return lax.scan(_remember(one, split), None, _cut(inputs, microbatches))[1]


@dataclass(frozen=True)
class Pipeline:
    """GPipe: contiguous layers over `axis`, a microbatch moves on one stage after the other.

    Tokens are embedded inside the tick, and a handoff sends each device's share of the width
    (`lookup`), gathered again by the receiving stage in the same all-gather that widens embeddings.
    Every tick's last layer is summed to all stages, so that the unembedding can be split over them.

    Attributes:
      axis: mesh axis of the stages.
      microbatches: M, or None for what the caller or the paper says.
      handoff: "lockstep" takes M + S - 1 ticks and waits for each handoff; "overlapped" sends the
        result of one tick during the next, so that it travels beside that tick's layers, and takes
        M + 2 (S - 1) ticks; "auto" overlaps where that adds at most a quarter, M >= 4 (S - 1).
        Beside collectives inside the layers XLA waits for the transfer all the same.
      layers: layers of each stage, in order; None deals them out evenly. Stages run in lock-step,
        so a shorter one also executes layers of zeros, which change nothing.

    Reference: Huang et al., "GPipe", 2019.
    """

    axis: str
    microbatches: int | None = None
    handoff: Handoff = "lockstep"
    layers: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.handoff not in ("auto", "lockstep", "overlapped"):
            raise ValueError(
                f"Pipeline: handoff must be auto, lockstep or overlapped; got {self.handoff!r}."
            )
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            if any(not isinstance(n, int) or n < 1 for n in self.layers):
                raise ValueError(
                    f"Pipeline: every stage needs at least one layer, got layers={self.layers}."
                )

    @property
    def stage_axes(self) -> tuple[str, ...]:
        return (self.axis,)

    def groups(self, num_layers: int, stages: int) -> tuple[int, ...]:
        if self.layers is not None:
            if len(self.layers) != stages or sum(self.layers) != num_layers:
                raise ValueError(
                    f"Pipeline: layers={self.layers} are {sum(self.layers)} layers on "
                    f"{len(self.layers)} stages; the model has {num_layers}, the mesh axis "
                    f"'{self.axis}' {stages}. Make both agree."
                )
            return self.layers
        if num_layers < stages:
            raise ValueError(
                f"Pipeline: {num_layers} layers cannot fill {stages} stages. Use at most "
                f"{num_layers} stages."
            )
        short, longer = divmod(num_layers, stages)
        return (short + 1,) * longer + (short,) * (stages - longer)

    def lag(self, microbatches: int, stages: int) -> int:
        """Ticks between a stage's work on a microbatch and the next stage's."""
        overlapped = self.handoff == "overlapped"
        if self.handoff == "auto":
            overlapped = stages > 1 and microbatches >= 4 * (stages - 1)
        return 2 if overlapped else 1

    def rounds(self, microbatches: int, stages: int) -> int:
        return microbatches

    def ticks(self, microbatches: int, stages: int) -> int:
        return microbatches + self.lag(microbatches, stages) * (stages - 1)

    def run(self, functions, inputs, microbatches, split):
        stages, me = lax.axis_size(self.axis), lax.axis_index(self.axis)
        lag = self.lag(microbatches, stages)
        forward = [(i, i + 1) for i in range(stages - 1)]
        inputs = _cut(inputs, microbatches)

        def at(index):
            # Before its first and after its last microbatch a stage works on a neighbour's: its
            # result is never kept, and lock-step devices would otherwise idle.
            index = jnp.clip(index, 0, microbatches - 1)
            return jax.tree.map(
                lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), inputs
            )

        def send(share):
            with jax.named_scope("handoff"):
                return lax.ppermute(share, self.axis, forward)

        def tick(waiting, number):
            received, share = waiting
            arriving = send(share) if lag == 2 else None
            microbatch = at(number - lag * me)
            mine = vary_over(functions.embed(microbatch), varying_axes(received))
            x = split.widen(jnp.where(me == 0, mine, received))
            y, statistics = functions.blocks(x, microbatch)
            # Without the barrier XLA moves the transfer behind the layers, beside its use. On y it
            # also keeps the last stage's sum out of its way, but would send again what a
            # microbatch recomputes.
            if lag == 2 and split.remat == "none":
                arriving, y = lax.optimization_barrier((arriving, y))
            share = split.narrow(y)
            if lag == 1:
                arriving, share = send(share), None
            elif split.remat != "none":
                arriving, share = lax.optimization_barrier((arriving, share))
            kept = functions.keep(y, microbatch)
            kept = split.narrow(jnp.where(me == stages - 1, kept, jnp.zeros_like(kept)))
            last = split.widen(lax.psum(kept, self.axis))
            result = functions.finish(last, at(number - lag * (stages - 1)))
            return (arriving, share), (result, statistics)

        first = functions.embed(at(0))
        empty = vary_over(jnp.zeros_like(first), {*varying_axes(first), self.axis})
        numbers = jnp.arange(self.ticks(microbatches, stages), dtype=jnp.int32)
        waiting = (empty, empty if lag == 2 else None)
        _, (results, statistics) = lax.scan(_remember(tick, split), waiting, numbers)
        statistics = jax.tree.map(
            lambda x: lax.dynamic_slice_in_dim(x, lag * me, microbatches), statistics
        )
        return jax.tree.map(lambda x: x[lag * (stages - 1) :], results), statistics


@dataclass(frozen=True)
class CacheTiled:
    """Slab by slab: a slab of a layer's weights serves all microbatches of a round before the next.

    Attention is cut by heads and the MLP by width, so that a slab fits a cache: the same result,
    and weights are read from device memory once a round instead of once a microbatch.
    `placement.tiles_under` says how many slabs a budget asks for.

    Attributes:
      attention: slabs of a layer's attention; whole groups of heads that share a key/value head.
      mlp: slabs of its MLP.
      round: microbatches of a round, a divisor of the microbatches (all, where there are fewer).
        None is all of them; with stages the most that leave each stage a round.
      inner: what runs the rounds: `Scan()`, or a `Pipeline` that hands rounds on.

    Cost: beside the layer's, every microbatch reads its rows and reads and writes float32 sums once
      a slab, so slabs of fewer bytes than that are a loss: see `placement.tile_traffic`.
      Made for inference: gradients pass and are exact, but each slab of each layer adds to a
      gradient of the whole stack. Where the strategy asks for `kernels`, a Hopper GPU's MLP is one
      kernel (`kernels.cache_tiled_mlp`) with slabs of its own, which has no gradient.
    """

    attention: int = 1
    mlp: int = 1
    round: int | None = None
    inner: "Scan | Pipeline" = Scan()

    def __post_init__(self):
        for name in ("attention", "mlp", "round"):
            count = getattr(self, name)
            if not (name == "round" and count is None) and (type(count) is not int or count < 1):
                raise ValueError(
                    f"CacheTiled: {name} must be an integer of at least 1, got {count!r}."
                )
        if not isinstance(self.inner, Scan | Pipeline):
            raise ValueError(
                f"CacheTiled: inner must be Scan() or Pipeline(...), got {self.inner!r}."
            )

    @property
    def tiles(self) -> Tiles:
        """Slabs of one layer."""
        return Tiles(self.attention, self.mlp)

    @property
    def compiler_options(self) -> dict[str, int]:
        """What XLA has to be told, as `jax.jit(..., compiler_options=)` takes it: it would merge
        products with the same rows, and for that put their matrices side by side every time."""
        return {"xla_gpu_dot_merger_threshold_mb": 0}

    @property
    def microbatches(self) -> int | None:
        """The inner part's own."""
        return getattr(self.inner, "microbatches", None)

    @property
    def stage_axes(self) -> tuple[str, ...]:
        return self.inner.stage_axes

    def groups(self, num_layers: int, stages: int) -> tuple[int, ...]:
        return self.inner.groups(num_layers, stages)

    def lag(self, microbatches: int, stages: int) -> int:
        """Of rounds; see `Pipeline`."""
        return self.inner.lag(microbatches, stages) if isinstance(self.inner, Pipeline) else 1

    def rounds(self, microbatches: int, stages: int) -> int:
        if self.round is not None:
            # A decoding step may have fewer microbatches than a round of the prompts'.
            most = min(self.round, microbatches)
            if microbatches % most:
                raise ValueError(
                    f"CacheTiled: rounds of {self.round} do not divide {microbatches} "
                    f"microbatches. Use a divisor of {microbatches}, or round=None."
                )
            return microbatches // most
        most = microbatches if stages == 1 else max(1, microbatches // stages)
        return microbatches // max(n for n in range(1, most + 1) if microbatches % n == 0)

    def ticks(self, microbatches: int, stages: int) -> int:
        return self.inner.ticks(self.rounds(microbatches, stages), stages)

    def run(self, functions, inputs, microbatches, split):
        rounds = self.rounds(microbatches, split.count("layers"))
        round = Round(microbatches // rounds, self.tiles)
        tiled = functions._replace(blocks=lambda x, inputs: functions.blocks(x, inputs, round))
        results, statistics = self.inner.run(tiled, inputs, rounds, split)
        return results, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), statistics)


LAYER_PARTS = {"scan": Scan, "pipeline": Pipeline, "cache_tiled": CacheTiled}
