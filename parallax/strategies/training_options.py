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
      shard_weights: mesh axes over which weights are sharded, as a list or joined by commas;
        "auto" is all that split tokens.
      gather: when sharded weights are gathered.
      shard_optimizer: mesh axes over which the optimizer's state is sharded too, or "auto".
      schedule: the order of passes in a pipeline; strategies without stages have none.
      virtual_stages: groups of layers per stage with the interleaved schedule; None is 2.
    """

    shard_weights: str | Sequence[str] | None = None
    gather: Gather | None = None
    shard_optimizer: str | Sequence[str] | None = None
    schedule: ScheduleName | None = None
    virtual_stages: int | None = None

    def __post_init__(self):
        for name in ("shard_weights", "shard_optimizer"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, tuple(filter(None, value.split(","))))

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

    def check(self, strategies: Sequence[Strategy]) -> None:
        """Raise ValueError for an option that none of the strategies, with these options, can take.

        Args:
          strategies: results of `apply`.
        """
        if not strategies:
            return
        names = ", ".join(f"{s.name} (mesh {s.mesh})" for s in strategies)
        shards = {
            "shard_weights": any(s.shards_weights for s in strategies),
            "shard_optimizer": any(s.rules.table("optimizer")["embed"] for s in strategies),
        }
        for option, is_taken in shards.items():
            if getattr(self, option) is not None and not is_taken:
                raise ValueError(
                    f"{option} {','.join(getattr(self, option))}: nothing is sharded, as no mesh "
                    f"axis of {names} splits the tokens. Use a strategy that splits them, alone or "
                    "in a hybrid (data_parallel, ring_sequence), or leave it out."
                )
        if self.gather is not None and not shards["shard_weights"]:
            raise ValueError(
                f"gather {self.gather}: no weights are sharded by {names}. Shard them "
                "(shard_weights=auto, or strategy fsdp), or leave it out."
            )
        staged = any(s.split().count("layers") > 1 for s in strategies)
        for option in ("schedule", "virtual_stages"):
            if getattr(self, option) is not None and not staged:
                raise ValueError(
                    f"{option} {getattr(self, option)}: no pipeline stages are in {names}. Use a "
                    "strategy that has some, such as tensor_pipeline or layerwise, or leave it out."
                )

    def _scheduled(self, strategy: Strategy) -> Strategy:
        layers = strategy.layers
        pipeline = layers.inner if isinstance(layers, CacheTiled) else layers
        if not isinstance(pipeline, Pipeline) or (self.schedule or self.virtual_stages) is None:
            return strategy
        schedule = self.schedule or pipeline.schedule
        virtual = self.virtual_stages or (2 if schedule == "interleaved" else 1)
        if virtual > 1 and schedule != "interleaved":
            raise ValueError(
                f"Strategy '{strategy.name}': virtual_stages={virtual} are for "
                f"schedule=interleaved; the schedule is {schedule}. Add schedule=interleaved, or "
                "leave virtual_stages out."
            )
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
    where = f"Strategy '{strategy.name}': {flag}={','.join(asked)}"
    if not asked:
        raise ValueError(f"{where}: the list is empty. Name mesh axes, or {AUTO}, or leave it out.")
    if len(set(asked)) < len(asked) or AUTO in asked:
        raise ValueError(f"{where}: expected {AUTO} alone, or mesh axes, each of them once.")
    if unknown := [axis for axis in asked if axis not in tokens]:
        others = (
            f"{', '.join(useful)} of mesh {strategy.mesh} can be used, or {AUTO}" if useful else
            f"no other of mesh {strategy.mesh} does. Combine it with a strategy whose axes split "
            "them, such as data_parallel, or leave it out"
        )  # fmt: skip
        raise ValueError(f"{where}: mesh axis '{unknown[0]}' does not split its tokens; {others}.")
    return tuple(asked)
