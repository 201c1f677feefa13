"""The choices of training that any strategy can take: sharded weights and state, the schedule."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from parallax.parallel.layer_parts import CacheTiled, Pipeline, ScheduleName
from parallax.parallel.sharded_weights import Gather
from parallax.strategies.sharded_weights import shard_optimizer, shard_weights
from parallax.strategy import Strategy

AUTO = "auto"  # all mesh axes that split the tokens


@dataclass(frozen=True)
class TrainingOptions:
    """Changes to a strategy; None leaves the strategy's own.

    Attributes:
      shard_weights: mesh axes over which weights are sharded; ("auto",) is all that split tokens.
      gather: when sharded weights are gathered.
      shard_optimizer: mesh axes over which the optimizer's state is sharded; or ("auto",).
      schedule: the order of passes in a pipeline; strategies without stages have none.
      virtual_stages: groups of layers per stage with the interleaved schedule; None is 2.
    """

    shard_weights: Sequence[str] | None = None
    gather: Gather | None = None
    shard_optimizer: Sequence[str] | None = None
    schedule: ScheduleName | None = None
    virtual_stages: int | None = None

    def apply(self, strategy: Strategy) -> Strategy:
        """Return the strategy with these options.

        Raises:
          ValueError: a mesh axis that the strategy lacks or that does not split its tokens.
        """
        if self.shard_weights is not None:
            axes = _axes(self.shard_weights, strategy, "shard_weights")
            strategy = shard_weights(strategy, axes, gather=strategy.gather)
        if self.shard_optimizer is not None:
            axes = _axes(self.shard_optimizer, strategy, "shard_optimizer")
            strategy = shard_optimizer(strategy, axes)
        if self.gather is not None and strategy.shards_weights:
            strategy = strategy.replace(gather=self.gather)
        return self._scheduled(strategy)

    def _scheduled(self, strategy: Strategy) -> Strategy:
        layers = strategy.layers
        pipeline = layers.inner if isinstance(layers, CacheTiled) else layers
        if not isinstance(pipeline, Pipeline) or (self.schedule or self.virtual_stages) is None:
            return strategy
        schedule = self.schedule or pipeline.schedule
        virtual = self.virtual_stages or (2 if schedule == "interleaved" else 1)
        pipeline = replace(pipeline, schedule=schedule, virtual_stages=virtual)
        if isinstance(layers, CacheTiled):
            return strategy.replace(layers=replace(layers, inner=pipeline))
        return strategy.replace(layers=pipeline)


def _axes(asked: Sequence[str], strategy: Strategy, flag: str) -> tuple[str, ...]:
    table, sizes = strategy.rules.table(), strategy.mesh_axes
    tokens = dict.fromkeys((*table["act_batch"], *table["act_seq"]))
    useful = tuple(axis for axis in sizes if axis in tokens and sizes[axis] > 1)
    if tuple(asked) == (AUTO,):
        return useful
    if unknown := [axis for axis in asked if axis not in tokens]:
        raise ValueError(
            f"Strategy '{strategy.name}': {flag}={','.join(asked)}: mesh axis '{unknown[0]}' does "
            f"not split its tokens; {', '.join(useful) or 'none'} of mesh {strategy.mesh} do. Use "
            f"these, or {AUTO}."
        )
    return tuple(asked)
