"""What a training step's report says beside its lenses, and what would make a step fit."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import jax

from parallax.analytic.memory import estimate_bytes
from parallax.analytic.train_memory import train_memory
from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.parallel.remat import Remat
from parallax.programs.decoding import Decoder
from parallax.programs.schedule_branches import training_schedule
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps import Phase
from parallax.results.training_facts import TrainingFacts
from parallax.search.train_choices import REMATS, doubling
from parallax.strategies.training_options import AUTO, TrainingOptions
from parallax.strategy import Strategy
from parallax.workload import Workload

_GIGA = 1e9
_MOST_NAMED = 3
_ALIKE = 1.05  # more microbatches that save less than this are no use
_OPTIONS = (
    ("--gather=layer", TrainingOptions(gather="layer")),
    ("--schedule=1f1b", TrainingOptions(schedule="1f1b")),
    (f"--shard_optimizer={AUTO}", TrainingOptions(shard_optimizer=(AUTO,))),
    (f"--shard_weights={AUTO}", TrainingOptions(shard_weights=(AUTO,))),
)


def training_facts(
    config: ModelConfig, strategy: Strategy, workload: Workload, remat: Remat
) -> TrainingFacts:
    """Return how a strategy trains, and the parts of its memory that follow from shapes.

    Raises:
      ValueError: sizes that the strategy does not divide.
    """
    way = _Way(config, strategy, workload, "train", remat)
    memory, mesh = train_memory(way.sharded, remat), strategy.mesh_axes
    held, state = (strategy.rules.table(p)["embed"] for p in ("train", "optimizer"))
    return TrainingFacts(
        weights=tuple(a for a in held if mesh[a] > 1),
        gather=strategy.gather,
        optimizer=tuple(a for a in state if mesh[a] > 1),
        remat=remat,
        microbatches=workload.microbatches,
        schedule=training_schedule(way.sharded),
        parameter_bytes=memory.parameters,
        optimizer_bytes=memory.optimizer,
        gradient_bytes=memory.gradients,
    )


def fitting_knob(
    config: ModelConfig,
    strategy: Strategy,
    workload: Workload,
    cluster: Cluster,
    phase: Phase = "train",
    remat: Remat = "layer",
) -> str:
    """Name the changes under which a step that does not fit would.

    Args:
      config, strategy, workload, phase, remat: the step; remat only matters in training.
      cluster: where it has to fit.

    Returns:
      Up to three flags, each of which is enough, with the memory per device by closed form; else
      several that are enough together; else those that help most.
    """
    usable, way = cluster.usable_bytes, _Way(config, strategy, workload, phase, remat)
    enough = _one_of_each(w for w in way.changes() if w.size <= usable)
    if enough:
        said = ", or ".join(w.said for w in enough[:_MOST_NAMED])
        return f"by closed form it fits with {said}"
    while way.size > usable and (better := _better(way, usable)) is not None:
        way = better
    if not way.flags:
        return "by closed form no change to the strategy needs less memory"
    fits = "fits with" if way.size <= usable else "still does not fit with"
    return f"by closed form it {fits} {way.said}"


@dataclass(frozen=True)
class _Way:
    """One way to run a step, and the flags that lead to it."""

    config: ModelConfig
    strategy: Strategy
    workload: Workload
    phase: Phase
    remat: Remat
    flags: tuple[str, ...] = ()

    @cached_property
    def sharded(self) -> ShardedTransformer:
        return ShardedTransformer(self.config, self.strategy, self.workload)

    @cached_property
    def size(self) -> float:
        if self.phase == "train":
            return train_memory(self.sharded, self.remat).total
        if self.phase == "prefill":
            return estimate_bytes(self.sharded)
        weights = sum(jax.tree.leaves(self.sharded.shard_bytes()))
        return float(weights + Decoder(self.sharded, 1).kv_bytes())

    @property
    def said(self) -> str:
        return f"{' '.join(self.flags)} ({self.size / _GIGA:.3g} GB)"

    def changes(self) -> "Iterator[_Way]":
        """Yield each way that differs by one flag, that sizes allow and that needs less memory."""
        for way in self._candidates():
            with suppress(ValueError):  # sizes that do not divide
                if way.size < self.size:
                    yield way

    def _candidates(self) -> "Iterator[_Way]":
        training = self.phase == "train"
        for remat in REMATS[REMATS.index(self.remat) + 1 :] if training else ():
            yield self._with(f"--remat={remat}", remat=remat)
        now = self.workload.microbatches
        local = self.workload.batch // self.strategy.split().count("act_batch")
        for microbatches in doubling(local):
            if microbatches > now and local % microbatches == 0:
                workload = replace(self.workload, microbatches=microbatches)
                yield self._with(f"--microbatches={microbatches}", workload=workload)
        if not training:  # requests may run one after the other; a step's batch is its optimizer's
            for batch in reversed(list(doubling(self.workload.batch - 1))):
                workload = replace(self.workload, batch=batch, microbatches=math.gcd(now, batch))
                yield self._with(f"--batch={batch}", workload=workload)
            return
        for flag, options in _OPTIONS:
            if (strategy := options.apply(self.strategy)) != self.strategy:
                yield self._with(flag, strategy=strategy)

    def _with(self, flag: str, **changes) -> "_Way":
        kept = [f for f in self.flags if _name(f) != _name(flag)]
        return replace(self, flags=(*kept, flag), **changes)


def _better(way: _Way, usable: float) -> _Way | None:
    """Return the first change that fits, else one that saves most; None if nothing saves."""
    changes = list(way.changes())
    if not changes:
        return None
    least = min(w.size for w in changes)
    enough = usable if least <= usable else least * _ALIKE
    return next(w for w in changes if w.size <= enough)


def _one_of_each(ways: Iterator[_Way]) -> list[_Way]:
    """Return the first way of each flag."""
    found: dict[str, _Way] = {}
    for way in ways:
        found.setdefault(_name(way.flags[-1]), way)
    return list(found.values())


def _name(flag: str) -> str:
    return flag.partition("=")[0]
