"""The regimes of described steps, and the error bars that measurements of each regime earned."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parallax.analytic.described.layout import Layout
from parallax.codec import FileFormat
from parallax.cost.rates import Spread

_SHIPPED = Path(__file__).parent / "bars.json"


@dataclass(frozen=True)
class Bar:
    """The 80 % interval of measured / modelled of a regime, and the rows that it is from.

    `rows` counts measurements that were not fitted when they were predicted.
    """

    spread: Spread
    rows: int


@dataclass(frozen=True)
class Bars:
    """The bars of all regimes, by name."""

    regimes: Mapping[str, Bar]


FILE = FileFormat(
    Bars, "error bars", "bars_version", 1, "Make it with `python -m parallax.studies.fitting`."
)


@functools.cache
def shipped_bars() -> Mapping[str, Bar]:
    """Return the shipped bars by regime."""
    return FILE.load(_SHIPPED).regimes


def training_regime(layout: Layout, nodes: int) -> str:
    """Name the regime of a training step's time: what its matrices and layers are split over."""
    parts = [name for name in ("tensor", "pipeline", "context", "expert")
             if getattr(layout, name) > 1]  # fmt: skip
    where = "one node" if nodes == 1 else "several nodes"
    return f"step, {' x '.join(parts) or 'data alone'}, {where}"


def memory_regime(layout: Layout) -> str:
    """Name the regime of a training step's memory."""
    return "memory, pipeline" if layout.pipeline > 1 else "memory, no pipeline"


def serving_regime(figure: str, software: str) -> str:
    """Name the regime of a serving figure, "ttft" or "tpot", under a piece of software."""
    return f"{figure}, {software}"


def bar_of(regime: str) -> Spread | None:
    """Return the bar of a regime; None where no measurement stands behind it."""
    bar = shipped_bars().get(regime)
    return None if bar is None else bar.spread
