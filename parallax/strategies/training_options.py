"""The choices of training that any strategy can take: sharded weights and state, the schedule."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from parallax.parallel.layer_parts import CacheTiled, Pipeline, ScheduleName
from parallax.parallel.sharded_weights import Gather
from parallax.strategies.sharded_weights import shard_optimizer, shard_weights
from parallax.strategy import Strategy

AUTO = "auto"  # all mesh axes that split the tokens

_TOKENS = "Use one that splits them, alone or in a hybrid (data_parallel, ring_sequence)"
_STAGES = "Use one that has stages, such as tensor_pipeline or layerwise"
_ADVICE = {
    "shard_weights": _TOKENS,
    "shard_optimizer": _TOKENS,
    "gather": "Shard them (shard_weights=auto, or strategy fsdp)",
    "schedule": _STAGES,
    "virtual_stages": _STAGES,
}


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
        """Raise ValueError for an option that none of the strategies can take.

        Args:
          strategies: results of `apply`.
        """
        untaken = [self.untaken(s) for s in strategies]
        names = ", ".join(f"{s.name} (mesh {s.mesh})" for s in strategies)
        for option, why in untaken[0].items() if untaken else ():
            if all(option in u for u in untaken):
                raise ValueError(
                    f"{option} {self._value(option)}: {why} in {names}. {_ADVICE[option]}, or "
                    "leave it out."
                )

    def untaken(self, strategy: Strategy) -> dict[str, str]:
        """Return the given options that change nothing in a strategy, each with the reason.

        Args:
          strategy: a result of `apply`.
        """
        tokens = "nothing is sharded, as no mesh axis splits the tokens"
        weights, stages = "no weights are sharded", "there are no pipeline stages"
        able = {
            "shard_weights": (strategy.shards_weights, tokens),
            "gather": (strategy.shards_weights, weights),
            "shard_optimizer": (bool(strategy.rules.table("optimizer")["embed"]), tokens),
            "schedule": (strategy.split().count("layers") > 1, stages),
            "virtual_stages": (strategy.split().count("layers") > 1, stages),
        }
        return {
            option: why
            for option, (is_taken, why) in able.items()
            if getattr(self, option) is not None and not is_taken
        }

    def notes(self, strategy: Strategy) -> tuple[str, ...]:
        """Return `untaken` as sentences."""
        return tuple(
            f"{option}={self._value(option)} changes nothing here: {why}"
            for option, why in self.untaken(strategy).items()
        )

    def _value(self, option: str) -> str:
        value = getattr(self, option)
        return ",".join(value) if isinstance(value, tuple | list) else str(value)

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
