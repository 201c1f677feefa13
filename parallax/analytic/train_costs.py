"""The cost of training steps that share their parts: other schedules, microbatches and updates."""

import functools
from dataclasses import dataclass

from parallax.analytic.packed_weights import weights_of
from parallax.analytic.single_kinds import single_kinds
from parallax.analytic.ticks import ticks_of
from parallax.analytic.train_trace import TrainTrace
from parallax.analytic.training import parts_of, train_steps
from parallax.cost import Cost, Rates, part_costs
from parallax.hlo.execution_trace import ExecutionTrace
from parallax.meshes.cluster import Cluster
from parallax.programs.steps import Training, TransformerStep

_TICKS = ("forward tick", "inputs tick", "backward tick")


@dataclass(frozen=True)
class TrainCosts:
    """The costs of a training step's parts.

    Attributes:
      work: the synthetic trace; of layers of several kinds, that of the most frequent one.
      parts: computation of the trace -> cost of one execution, with one chunk per stage.
      is_uniform: whether all stages of a pipeline run whatever any stage runs.
    """

    work: ExecutionTrace
    parts: dict[str, Cost]
    is_uniform: bool

    @classmethod
    def of(cls, step: Training, cluster: Cluster, rates: Rates) -> "TrainCosts":
        """Estimate the costs of the parts of a step, without virtual stages."""
        found = [(f, cls._of(one, cluster, rates)) for f, one in single_kinds(step)]
        if len(found) == 1:
            return found[0][1]
        names = dict.fromkeys(name for _, costs in found for name in costs.parts)
        parts = {
            name: sum((c.parts.get(name, Cost()).times(f) for f, c in found), Cost())
            for name in names
        }
        return cls(found[0][1].work, parts, any(costs.is_uniform for _, costs in found))

    @classmethod
    def _of(cls, step: TransformerStep, cluster: Cluster, rates: Rates) -> "TrainCosts":
        assert isinstance(step, Training)
        trace = TrainTrace(step, 1.0, weights_of(step.config), cluster.gpu.device_kind)
        steps = train_steps(trace)
        work = ExecutionTrace("entry", steps, step.strategy.mesh.size)
        names = ("start", "microbatch", *_TICKS, "end of microbatch", "update")
        parts = part_costs(work, [n for n in names if n in steps], cluster, rates)
        return cls(work, parts, bool(trace.rings()))

    def whole(self, step: Training, update: Cost) -> tuple[Cost, float]:
        """Add up the cost of a step with these parts, in its own schedule and with its own update.

        Returns:
          The cost, and the time that stages idle or wait over the time that they work.
        """
        microbatches = step.workload.microbatches
        strategy, stages = step.strategy, step.strategy.split().count("layers")
        ticks = ticks_of(strategy.layers, stages, microbatches)
        counts = parts_of(microbatches, ticks, is_uniform=self.is_uniform)
        if ticks is not None:
            counts = {n: k / ticks.chunks if n in _TICKS else k for n, k in counts.items()}
        costs = {**self.parts, "update": update}
        cost = functools.reduce(Cost.__add__, (costs[n].times(k) for n, k in counts.items()))
        if ticks is None:
            return cost, 0.0
        busy = sum(self.parts[part].seconds for part in ticks.parts) * microbatches
        return cost, sum(self.parts[n].seconds * counts[n] for n in ticks.parts) / busy - 1.0
