"""The layer parts of strategies: how a stack of layers runs over devices and microbatches.

A part runs the functions of a model on the local shards of one `shard_map`: `StackFunctions`
forward, and `TrainFunctions` where it also computes gradients.
Inputs are a pytree whose leaves have the batch first.
Shapes: B sequences on this device, M microbatches, b = B / M, S stages.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
from jax import lax

from parallax.parallel.gradients import (
    Gradients,
    LocalParams,
    Precision,
    TrainFunctions,
    accumulate,
    cut,
)
from parallax.parallel.pipeline_forward import StackFunctions, run_forward
from parallax.parallel.pipeline_gradients import run_schedule
from parallax.parallel.schedules import SCHEDULES, Schedule, ScheduleName, make_schedule
from parallax.parallel.split import Split
from parallax.parallel.tiles import MicrobatchGroup, Tiles

Handoff = Literal["auto", "lockstep", "overlapped"]


class LayerPart(Protocol):
    """The protocol of a layer part."""

    @property
    def virtual_stages(self) -> int:
        """The number of chunks of layers on each stage; 1 without stages."""
        ...

    @property
    def stage_axes(self) -> tuple[str, ...]:
        """The mesh axes over which this part expects the layers to be split."""
        ...

    def groups(self, num_layers: int, stages: int, period: int = 1) -> tuple[int, ...]:
        """Return the number of layers of each stage, in order. ValueError if they cannot fit.

        Stages start at multiples of `period`, because all of them run one program.
        """
        ...

    def run(
        self, functions: StackFunctions, inputs: Any, microbatches: int, split: Split
    ) -> tuple[Any, Any]:
        """Run all microbatches.

        Returns:
          Results of `finish`, each leaf with a leading number of microbatch groups, the same on
          every stage; statistics of this device's layers, each leaf with a leading M.
        """
        ...

    def gradients(
        self, functions: TrainFunctions, params: LocalParams, inputs: Any, microbatches: int,
        split: Split, precision: Precision,
    ) -> Gradients:  # fmt: skip
        """Run forward and backward passes of all microbatches."""
        ...

    def microbatch_groups(self, microbatches: int, stages: int) -> int:
        """Return the number of microbatch groups, M unless a part runs several at once."""
        ...

    def ticks(self, microbatches: int, stages: int) -> int:
        """Return how many times a device runs its layers in one forward pass."""
        ...


@dataclass(frozen=True)
class Scan:
    """The layer part in which each device holds its shard of all layers and scans microbatches."""

    @property
    def stage_axes(self) -> tuple[str, ...]:
        return ()

    @property
    def virtual_stages(self) -> int:
        return 1

    def groups(self, num_layers: int, stages: int, period: int = 1) -> tuple[int, ...]:
        return (num_layers,)

    def microbatch_groups(self, microbatches: int, stages: int) -> int:
        return microbatches

    def ticks(self, microbatches: int, stages: int) -> int:
        return microbatches

    def run(self, functions, inputs, microbatches, split):
        def one(_, microbatch):
            x = split.gather_width(functions.embed(microbatch))
            y, statistics = functions.blocks(x, microbatch)
            if functions.finish is None:
                return None, ((), statistics)
            return None, (functions.finish(functions.keep(y, microbatch), microbatch), statistics)

        return lax.scan(one, None, cut(inputs, microbatches))[1]

    def gradients(self, functions, params, inputs, microbatches, split, precision):
        def microbatch(params, inputs):
            x = split.gather_width(functions.embed(params.outer, inputs))
            y, penalty, statistics = functions.blocks(params.layers, x, inputs, 0)
            loss, beside = functions.loss(params.outer, y, inputs)
            return (loss, penalty), (beside, statistics)

        return accumulate(microbatch, params, inputs, microbatches, precision)


@dataclass(frozen=True)
class Pipeline:
    """The pipeline: contiguous layers over `axis`; microbatches pass from stage to stage.

    Tokens are embedded inside the tick. A handoff sends each device's share of the width
    (`lookup`), and the receiving stage uses the same all-gather for it as for embeddings. The last
    layer's result of every tick is summed to all stages, so that the unembedding can be split
    over them.

    Attributes:
      axis: mesh axis of the stages.
      microbatches: M; None takes the caller's or the paper's number.
      handoff: "lockstep" takes M + S - 1 ticks and waits for each handoff; "overlapped" sends the
        result of one tick during the next tick's layers, and takes M + 2 (S - 1) ticks; "auto"
        overlaps if that adds at most a quarter, M >= 4 (S - 1). If the layers have collectives of
        their own, XLA waits for the transfer all the same. Of forward passes alone.
      schedule: the order of forward and backward passes in a training step, see
        `schedules.make_schedule`; forward passes alone run as GPipe's.
      virtual_stages: chunks of layers of each stage, with the interleaved schedule; chunk c of
        stage s is the group c S + s of the layers. Not for decoding.
      layers: layers of each stage, in order; None distributes them evenly. Stages run in lock-step,
        so a shorter one also executes layers of zeros, which change nothing.

    Reference: Huang et al., "GPipe", 2019.
    """

    axis: str
    microbatches: int | None = None
    handoff: Handoff = "lockstep"
    layers: tuple[int, ...] | None = None
    schedule: ScheduleName = "gpipe"
    virtual_stages: int = 1

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"Pipeline: schedule must be one of {', '.join(SCHEDULES)}; got {self.schedule!r}."
            )
        if self.virtual_stages < 1 or (self.virtual_stages > 1) != (self.schedule == "interleaved"):
            raise ValueError(
                f"Pipeline: virtual_stages={self.virtual_stages} with schedule "
                f"{self.schedule!r}. Use 2 or more with interleaved, 1 with others."
            )
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

    def groups(self, num_layers: int, stages: int, period: int = 1) -> tuple[int, ...]:
        multiple = stages * self.virtual_stages * period
        if self.virtual_stages > 1 and (self.layers or num_layers % multiple):
            raise ValueError(
                f"Pipeline: {self.virtual_stages} virtual stages on each of {stages} stages need "
                f"layers=None and a multiple of {multiple} layers{_of_kinds(period)}; got "
                f"layers={self.layers}, {num_layers} layers."
            )
        if self.layers is not None:
            if len(self.layers) != stages or sum(self.layers) != num_layers:
                raise ValueError(
                    f"Pipeline: layers={self.layers} are {sum(self.layers)} layers on "
                    f"{len(self.layers)} stages; the model has {num_layers}, the mesh axis "
                    f"'{self.axis}' {stages}. Make both agree."
                )
            if any(n % period for n in self.layers[:-1]):
                raise ValueError(
                    f"Pipeline: layers={self.layers}: every stage but the last needs a multiple of "
                    f"{period} layers{_of_kinds(period)}."
                )
            return self.layers
        most = -(-num_layers // period)
        if most < stages:
            raise ValueError(
                f"Pipeline: {num_layers} layers{_of_kinds(period)} are fewer than {stages} stages. "
                f"Use at most {most} stages."
            )
        if period > 1:
            return _whole_patterns(num_layers, stages, period)
        short, longer = divmod(num_layers, stages)
        return (short + 1,) * longer + (short,) * (stages - longer)

    def lag(self, microbatches: int, stages: int) -> int:
        """Return the ticks between a stage's work on a microbatch and the next stage's."""
        overlapped = self.handoff == "overlapped"
        if self.virtual_stages > 1:  # the last stage hands on to the first, which waits for it
            overlapped = False
        elif self.handoff == "auto":
            overlapped = stages > 1 and microbatches >= 4 * (stages - 1)
        return 2 if overlapped else 1

    def microbatch_groups(self, microbatches: int, stages: int) -> int:
        return microbatches

    def ticks(self, microbatches: int, stages: int) -> int:
        whole = self.virtual_stages * microbatches
        return whole + self.lag(microbatches, stages) * (stages - 1)

    def run(self, functions, inputs, microbatches, split):
        lag = self.lag(microbatches, lax.axis_size(self.axis))
        return run_forward(
            functions, inputs, microbatches, split, self.axis, lag, self.virtual_stages
        )

    def gradients(self, functions, params, inputs, microbatches, split, precision):
        table = self.table(microbatches, lax.axis_size(self.axis))
        return run_schedule(table, functions, params, inputs, split, self.axis, precision)

    def table(self, microbatches: int, stages: int) -> Schedule:
        """Return the schedule of a training step."""
        return make_schedule(self.schedule, stages, microbatches, self.virtual_stages)


@dataclass(frozen=True)
class CacheTiled:
    """The cache-tiled order: each weight tile of a layer runs all microbatches of a group in turn.

    Attention is cut by heads and the MLP by width, so that a weight tile fits in a cache. The
    result is the same, and weights are read from device memory once per microbatch group instead
    of once per microbatch. `placement.tiles_under` computes the number of tiles from a budget.

    Attributes:
      attention: weight tiles of a layer's attention, each of whole groups of heads that share a
        key/value head.
      mlp: weight tiles of its MLP.
      round: microbatches per group, a divisor of the microbatches (all, if there are fewer). None
        is all of them; with stages, the most that leave each stage a group.
      inner: the part that runs the groups: `Scan()`, or a `Pipeline` that hands groups on.

    Cost: in addition to the layer's cost, every microbatch reads its rows, and reads and writes
      float32 sums, once per weight tile, so tiles with fewer bytes than that are a loss: see
      `placement.tile_traffic`. Made for inference: gradients are exact, but each tile of each
      layer adds to a gradient of the whole stack. If the strategy enables `kernels`, a Hopper GPU's
      MLP is one kernel (`kernels.cache_tiled_mlp`) with tiles of its own, which has no gradient.
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
        """The weight tiles of one layer."""
        return Tiles(self.attention, self.mlp)

    @property
    def compiler_options(self) -> dict[str, int]:
        """The XLA options for `jax.jit(..., compiler_options=)`.

        They stop XLA from merging products with the same rows, for which it would concatenate their
        matrices every time.
        """
        return {"xla_gpu_dot_merger_threshold_mb": 0}

    @property
    def microbatches(self) -> int | None:
        """The number of microbatches of the inner part."""
        return getattr(self.inner, "microbatches", None)

    @property
    def stage_axes(self) -> tuple[str, ...]:
        return self.inner.stage_axes

    @property
    def virtual_stages(self) -> int:
        return self.inner.virtual_stages

    def groups(self, num_layers: int, stages: int, period: int = 1) -> tuple[int, ...]:
        return self.inner.groups(num_layers, stages, period)

    def lag(self, microbatches: int, stages: int) -> int:
        """Return the lag of microbatch groups; see `Pipeline.lag`."""
        return self.inner.lag(microbatches, stages) if isinstance(self.inner, Pipeline) else 1

    def microbatch_groups(self, microbatches: int, stages: int) -> int:
        if self.round is not None:
            # A decoding step may have fewer microbatches than a group of the prefill.
            most = min(self.round, microbatches)
            if microbatches % most:
                raise ValueError(
                    f"CacheTiled: groups of {self.round} do not divide {microbatches} "
                    f"microbatches. Use a divisor of {microbatches}, or round=None."
                )
            return microbatches // most
        most = microbatches if stages == 1 else max(1, microbatches // stages)
        return microbatches // max(n for n in range(1, most + 1) if microbatches % n == 0)

    def ticks(self, microbatches: int, stages: int) -> int:
        return self.inner.ticks(self.microbatch_groups(microbatches, stages), stages)

    def run(self, functions, inputs, microbatches, split):
        groups = self.microbatch_groups(microbatches, split.count("layers"))
        group = MicrobatchGroup(microbatches // groups, self.tiles)
        tiled = functions._replace(blocks=lambda x, inputs: functions.blocks(x, inputs, group))
        results, statistics = self.inner.run(tiled, inputs, groups, split)
        return results, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), statistics)

    def gradients(self, functions, params, inputs, microbatches, split, precision):
        groups = self.microbatch_groups(microbatches, split.count("layers"))
        group = MicrobatchGroup(microbatches // groups, self.tiles)
        tiled = functions._replace(blocks=functools.partial(functions.blocks, group=group))
        found = self.inner.gradients(tiled, params, inputs, groups, split, precision)
        beside, statistics = found.beside
        joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), statistics)
        return found._replace(beside=(beside, joined))


LAYER_PARTS = {"scan": Scan, "pipeline": Pipeline, "cache_tiled": CacheTiled}


def _of_kinds(period: int) -> str:
    return "" if period == 1 else f" in patterns of {period}"


def _whole_patterns(num_layers: int, stages: int, period: int) -> tuple[int, ...]:
    """Distribute layers evenly over stages that start at multiples of the period."""
    most = -(-num_layers // period)
    starts = [0]
    for stage in range(1, stages):
        even = round(stage * num_layers / (stages * period))
        starts.append(min(max(even, starts[-1] + 1), most - (stages - stage)))
    ends = [*(period * start for start in starts[1:]), num_layers]
    return tuple(end - period * start for start, end in zip(starts, ends, strict=True))
