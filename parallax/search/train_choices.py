"""The candidates of one strategy in training: memory first, then the time of what fits.

Pruned without a loss by the model: without stages, more microbatches only save memory; and a choice
of remat that recomputes more only saves memory.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

from parallax.analytic.train_costs import TrainCosts
from parallax.analytic.train_memory import Elements, TrainMemory, elements_of, train_memory
from parallax.cost import Cost, Rates
from parallax.hlo.execution_trace import ExecutionTrace
from parallax.meshes.cluster import Cluster
from parallax.parallel.remat import Remat
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps import Training
from parallax.programs.training import TrainStep
from parallax.search.train_layouts import Layout, schedules
from parallax.search.train_results import TrainSearchRequest
from parallax.strategy import Strategy
from parallax.workload import Workload

# From the fastest to what needs the least memory.
REMATS: tuple[Remat, ...] = get_args(Remat)


class Choice(NamedTuple):
    """One way to train with its memory, and with its cost if it fits.

    Attributes:
      step: the training step.
      memory: its memory by closed form.
      kept: the next choice of remat that recomputes less, and its bytes, which do not fit.
      cost, bubble, work: its cost, idle share and trace; None, 0 and None where it does not fit.
    """

    step: Training
    memory: TrainMemory
    kept: tuple[Remat, float] | None
    cost: Cost | None = None
    bubble: float = 0.0
    work: ExecutionTrace | None = None


@dataclass
class LayoutChoices:
    """The choices of one layout of a strategy.

    Attributes:
      request, cluster, rates: what is asked for, and where.
      usable: bytes that a step may need.
      considered, estimated: choices seen so far, and those of them whose time was estimated.
    """

    request: TrainSearchRequest
    cluster: Cluster
    rates: Rates
    usable: float
    considered: int = 0
    estimated: int = 0
    _costs: dict[tuple, TrainCosts] = field(default_factory=dict)

    def of(self, layout: Layout) -> Iterator[Choice]:
        """Yield what fits of a layout with its cost; if nothing does, what needs the least memory.

        Raises:
          ValueError: sizes that the layout does not divide.
        """
        self._costs.clear()
        ways = list(dict.fromkeys(layout))
        elements = {way: elements_of(self._sharded(way, 1).untied) for way in ways}
        least: Choice | None = None
        found = False
        for way in ways:
            for choice in self._fitting(way, elements[way]):
                if choice.memory.total <= self.usable:
                    found = True
                    yield self._with_cost(choice, layout)
                elif least is None or choice.memory.total < least.memory.total:
                    least = choice
        if not found and least is not None:
            yield least

    def _sharded(self, strategy: Strategy, microbatches: int) -> ShardedTransformer:
        workload = Workload(self.request.batch, self.request.seq_len, microbatches)
        return ShardedTransformer(self.request.model, strategy, workload)

    def _fitting(self, strategy: Strategy, elements: Elements) -> Iterator[Choice]:
        """Yield the choices whose time has to be known, and what does not fit at all."""
        split = strategy.split()
        stages = split.count("layers")
        local = self.request.batch // split.count("act_batch")
        numbers = [m for m in doubling(local) if local % m == 0]
        staged = [m for m in numbers if m >= stages] or numbers[-1:]
        best = len(REMATS)  # recomputing more than a smaller number of microbatches is no use
        for microbatches in numbers if stages == 1 else staged:
            for scheduled in schedules(strategy, microbatches):
                choice = self._least_remat(scheduled, microbatches, elements)
                place = REMATS.index(choice.step.program.remat)
                if choice.memory.total > self.usable:
                    yield choice
                elif stages > 1 or place < best:
                    best = min(best, place)
                    yield choice
            if stages == 1 and best == 0:
                return

    def _least_remat(self, strategy: Strategy, microbatches: int, elements: Elements) -> Choice:
        """Return the choice that recomputes the least of those that fit, else the smallest."""
        sharded, kept = self._sharded(strategy, microbatches), None
        for remat in REMATS:
            memory = train_memory(sharded, remat, elements=elements)
            self.considered += 1
            if memory.total <= self.usable or remat == REMATS[-1]:
                return Choice(Training(TrainStep(sharded, remat=remat)), memory, kept)
            kept = remat, memory.total
        raise AssertionError("REMATS is empty")

    def _with_cost(self, choice: Choice, layout: Layout) -> Choice:
        """Return a choice with its cost; parts are shared by schedules, and by both layouts."""
        self.estimated += 1
        step = choice.step
        chunks = getattr(step.strategy.layers, "virtual_stages", 1)
        splits = getattr(step.strategy.layers, "schedule", "") == "zb-h1"
        plain = step.strategy.replace(rules=layout.strategy.rules)
        key = plain.gather, step.workload.microbatches, step.program.remat, chunks, splits
        if key not in self._costs:
            shared = _with_strategy(step, plain)
            self._costs[key] = TrainCosts.of(shared, self.cluster, self.rates)
        costs = self._costs[key]
        update = costs.parts["update"]
        if plain != step.strategy:
            own = "update", plain.gather
            if own not in self._costs:
                self._costs[own] = TrainCosts.of(step, self.cluster, self.rates)
            update = self._costs[own].parts["update"]
        cost, bubble = costs.whole(step, update)
        return choice._replace(cost=cost, bubble=bubble, work=costs.work)


def doubling(limit: int) -> Iterator[int]:
    """Yield the powers of two up to a limit."""
    m = 1
    while m <= limit:
        yield m
        m *= 2


def _with_strategy(step: Training, strategy: Strategy) -> Training:
    sharded = dataclasses.replace(step.sharded, strategy=strategy)
    return Training(dataclasses.replace(step.program, sharded=sharded))
