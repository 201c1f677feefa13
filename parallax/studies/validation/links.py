"""Measured collectives beside their predictions, by folds inside nodes and on named networks."""

from parallax.cost.measurements import fold_of
from parallax.studies.fitting.links import FittedLinks, HeldOut
from parallax.studies.validation.scores import Judged


def judge_inside(fitted: FittedLinks) -> list[Judged]:
    """Judge collectives inside a node; a regime is a GPU and a size class."""
    return [_judged("collectives inside a node", h) for h in fitted.held_out if h.row.nodes == 1]


def judge_between(fitted: FittedLinks) -> list[Judged]:
    """Judge collectives between nodes of a named network; a regime is two nodes, or more."""
    return [_judged("collectives between nodes", h) for h in fitted.held_out if h.row.nodes > 1]


def _judged(table: str, h: HeldOut) -> Judged:
    row = h.row
    label = f"{row.kind} of {row.bytes:,} B on {row.devices} x {row.gpu}, {row.source}"
    fold = fold_of(row.key)
    return Judged(table, "collective", label, h.modelled_s, row.seconds, h.regime, fold)
