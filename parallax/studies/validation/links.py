"""Measured collectives beside their predictions, by folds inside nodes and on named networks."""

from collections.abc import Iterable

from parallax.studies.fitting.links import FittedLinks, HeldOut
from parallax.studies.validation.scores import Judged


def judge_inside(fitted: FittedLinks) -> list[Judged]:
    """Judge collectives inside a node; a regime is a GPU and a size class."""
    return [_judged("collectives inside a node", h, f"{h.where}, {h.size_class}")
            for h in fitted.held_out if h.row.nodes == 1]  # fmt: skip


def judge_between(fitted: FittedLinks) -> list[Judged]:
    """Judge collectives between nodes; a regime is a network and a number of nodes."""
    return [_judged("collectives between nodes", h, f"{h.where}, {_nodes(h)}")
            for h in fitted.held_out if h.row.nodes > 1]  # fmt: skip


def two_nodes(rows: Iterable[Judged]) -> list[Judged]:
    """Return those of two nodes."""
    return [row for row in rows if row.regime.endswith(", two nodes")]


def _nodes(h: HeldOut) -> str:
    return "two nodes" if h.row.nodes == 2 else "more nodes"


def _judged(table: str, h: HeldOut, regime: str) -> Judged:
    row = h.row
    label = f"{row.kind} of {row.bytes:,} B on {row.devices} x {row.gpu}, {row.source}"
    return Judged(table, "collective", label, h.modelled_s, row.seconds, regime, h.fold)
