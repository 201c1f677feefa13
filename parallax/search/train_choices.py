"""The candidates of one strategy in training: memory first, then the time of what fits.

Without stages, more microbatches only save memory, and so does a layer that is recomputed whole. To
keep everything may take longer than to recompute all but matrix products, so both are tried.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

from parallax.analytic.train_costs import TrainCosts
from parallax.analytic.train_memory import Elements, TrainMemory, elements_of, train_memories
from parallax.cost import Cost, Rates, joules
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
      cost, bubble: its cost and idle share; None and 0 where it does not fit.
      parts: the costs of its parts, which its cost is added up from.
    """

    step: Training
    memory: TrainMemory
    kept: tuple[Remat, float] | None
    cost: Cost | None = None
    bubble: float = 0.0
    parts: TrainCosts | None = None


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
    _costs: dict[Any, TrainCosts] = field(default_factory=dict)

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

    def bound(self, strategy: Strategy) -> float:
        """Return a score that no layout of a strategy is much better than.

        It is that of the layers, the loss and what they send, in the fewest microbatches; no sums
        of gradients, no update, no bubble.

        Raises:
          ValueError: sizes that the strategy does not divide.
        """
        microbatches = self._microbatches(strategy)[0]
        sharded = self._sharded(strategy, microbatches)
        step = Training(TrainStep(sharded, remat="attention"))
        parts = TrainCosts.of(step, self.cluster, self.rates).parts
        names = ("microbatch", "forward tick", "backward tick", "end of microbatch")
        return self.score(sum((parts[n] for n in names if n in parts), Cost()).times(microbatches))

    def score(self, cost: Cost) -> float:
        """Return the score of a cost under the objective; less is better."""
        if self.request.objective == "energy":
            return joules(cost, self.rates)
        return cost.seconds

    def _microbatches(self, strategy: Strategy) -> list[int]:
        """Return the numbers of microbatches to try; too few of them leave stages idle."""
        split = strategy.split()
        local = self.request.batch // split.count("act_batch")
        numbers = [m for m in doubling(local) if local % m == 0]
        return [m for m in numbers if m >= split.count("layers")] or numbers[-1:]

    def priced(self, choice: Choice) -> Choice:
        """Return a choice that does not fit with its cost all the same."""
        self._costs.clear()
        return self._with_cost(choice, Layout(choice.step.strategy, choice.step.strategy))

    def _sharded(self, strategy: Strategy, microbatches: int) -> ShardedTransformer:
        workload = Workload(self.request.batch, self.request.seq_len, microbatches)
        return ShardedTransformer(self.request.model, strategy, workload)

    def _fitting(self, strategy: Strategy, elements: Elements) -> Iterator[Choice]:
        """Yield the choices whose time has to be known, and what does not fit at all."""
        stages, model = strategy.split().count("layers"), self.request.model
        best = len(REMATS)  # recomputing more than a smaller number of microbatches is no use
        for microbatches in self._microbatches(strategy):
            fewer = best
            for scheduled in schedules(
                strategy, model.stacked_layers, microbatches, len(model.kinds)
            ):
                for choice in self._least_remats(scheduled, microbatches, elements):
                    place = REMATS.index(choice.step.program.remat)
                    if stages > 1 or place < fewer or choice.memory.total > self.usable:
                        yield choice
                    best = min(best, place if choice.memory.total <= self.usable else best)
            if stages == 1 and best == 0:
                return

    def _least_remats(
        self, strategy: Strategy, microbatches: int, elements: Elements
    ) -> Iterator[Choice]:
        """Yield what recomputes the least of what fits, beside "attention"; else the smallest."""
        sharded, kept = self._sharded(strategy, microbatches), None
        memories = train_memories(sharded, REMATS, elements=elements)
        for remat, memory in zip(REMATS, memories, strict=True):
            self.considered += 1
            fits = memory.total <= self.usable
            if fits or remat == REMATS[-1]:
                yield Choice(Training(TrainStep(sharded, remat=remat)), memory, kept)
            if fits and remat != REMATS[0]:
                return
            kept = None if fits else (remat, memory.total)

    def _with_cost(self, choice: Choice, layout: Layout) -> Choice:
        """Return a choice with its cost; parts are shared by schedules, and by both layouts."""
        self.estimated += 1
        step = choice.step
        plain = layout.strategy
        key = step.workload.microbatches, step.program.remat
        if key not in self._costs:
            shared = _with_strategy(step, plain)
            self._costs[key] = TrainCosts.of(shared, self.cluster, self.rates)
        costs = self._costs[key]
        update = costs.parts["update"]
        if step.strategy.rules != plain.rules:
            if "update" not in self._costs:
                own = _with_strategy(step, layout.sharded_state)
                self._costs["update"] = TrainCosts.of(own, self.cluster, self.rates)
            update = self._costs["update"].parts["update"]
        cost, bubble = costs.whole(step, update)
        return choice._replace(cost=cost, bubble=bubble, parts=costs)


def doubling(limit: int) -> Iterator[int]:
    """Yield the powers of two up to a limit."""
    m = 1
    while m <= limit:
        yield m
        m *= 2


def _with_strategy(step: Training, strategy: Strategy) -> Training:
    sharded = dataclasses.replace(step.sharded, strategy=strategy)
    return Training(dataclasses.replace(step.program, sharded=sharded))
