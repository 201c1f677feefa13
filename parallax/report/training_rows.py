"""Rows of a training comparison: how each strategy trains, and the parts of its memory."""

from collections.abc import Callable

from parallax.report import words
from parallax.report.facts import Cell
from parallax.results.lens_results import StrategyResult, Tag
from parallax.results.training_facts import TrainingFacts

type Fact = tuple[str, Tag, Callable[[StrategyResult], Cell | None]]


def _of(read: Callable[[TrainingFacts], str | None]) -> Callable[[StrategyResult], Cell | None]:
    def cell(result: StrategyResult) -> Cell | None:
        text = None if result.training is None else read(result.training)
        return None if text is None else Cell(text)

    return cell


def _weights(t: TrainingFacts) -> str:
    return words.axes_name(t.weights) if t.weights else "not sharded"


def _gathered(t: TrainingFacts) -> str | None:
    return {"layer": "by each layer", "step": "once per step"}[t.gather] if t.weights else None


def _schedule(t: TrainingFacts) -> str | None:
    if t.schedule is None:
        return None
    chunks = f" x {t.schedule.virtual_stages}" if t.schedule.virtual_stages > 1 else ""
    return f"{t.schedule.name}, {t.schedule.stages}{chunks} stages"


def _in_flight(t: TrainingFacts) -> str | None:
    if t.schedule is None:
        return None
    what = "chunks of layers" if t.schedule.virtual_stages > 1 else "microbatches"
    return f"{t.schedule.peak_in_flight} {what}"


def _rest(result: StrategyResult) -> Cell | None:
    """Return the compiled memory that is neither parameters, optimizer state nor gradients."""
    if result.training is None or result.compilation is None:
        return None
    return Cell(words.in_bytes(result.training.rest_of(result.compilation.memory.total_bytes)))


TRAINED: tuple[Fact, ...] = (
    ("weights sharded over", "derived", _of(_weights)),
    ("weights gathered", "derived", _of(_gathered)),
    ("optimizer sharded over", "derived",
     _of(lambda t: words.axes_name(t.optimizer) if t.optimizer else "not sharded")),
    ("pipeline schedule", "derived", _of(_schedule)),
    ("peak in flight", "derived", _of(_in_flight)),
    ("handoffs each way", "derived",
     _of(lambda t: f"{t.schedule.handoffs:,}" if t.schedule else None)),
    ("rematerialisation", "derived", _of(lambda t: t.remat)),
    ("microbatches", "derived", _of(lambda t: f"{t.microbatches:,}")),
)  # fmt: skip

TRAIN_MEMORY: tuple[Fact, ...] = (
    ("of which optimizer state", "derived", _of(lambda t: words.in_bytes(t.optimizer_bytes))),
    ("of which gradients", "derived", _of(lambda t: words.in_bytes(t.gradient_bytes))),
    ("activations and the rest", "compiled", _rest),
)
