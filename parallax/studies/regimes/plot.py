"""Maps of a study of regimes: a panel per storage, batch across and width up."""

from collections.abc import Sequence
from typing import Any

from parallax.report.svg import INK, MUTED, SERIES, SMALL, new_figure, to_svg
from parallax.studies.regimes.places import BASELINE, LAYERWISE, NO_COMMUNICATION, Place

LABELS: dict[str, str] = {
    LAYERWISE: "layer-wise",
    BASELINE: "TP x PP",
    NO_COMMUNICATION: "data parallel",
}
_NOTHING, _AHEAD, _BEHIND = "does not fit", "layer-wise is faster", "TP x PP is faster"
_STYLES: dict[str, dict[str, Any]] = {
    LABELS[LAYERWISE]: {"marker": "o", "color": SERIES[1], "linewidths": 0},
    LABELS[BASELINE]: {"marker": "s", "color": SERIES[0], "linewidths": 0},
    LABELS[NO_COMMUNICATION]: {"marker": "^", "color": SERIES[3], "linewidths": 0},
    _AHEAD: {"marker": "o", "color": SERIES[1], "linewidths": 0},
    _BEHIND: {"marker": "s", "color": SERIES[0], "linewidths": 0},
    _NOTHING: {"marker": "x", "color": MUTED, "linewidths": 0.8},
}
# (a lead up to this ratio, the size of its mark).
_SIZES = ((1.1, 12.0), (1.3, 25.0), (1.8, 42.0))
_SHOWN = ("float16", "int8, MLP int8+2:4", "int4+2:4")


def winner_plot(places: Sequence[Place], name: str) -> str:
    """Plot the fastest strategy per place; the mark grows with its lead over the second."""
    return _panels(places, name, "fastest strategy", _winner)


def baseline_plot(places: Sequence[Place], name: str) -> str:
    """Plot layer-wise against the baseline; the mark grows with the ratio of their times."""
    return _panels(places, name, "layer-wise against TP x PP", _against)


def panels(places: Sequence[Place]) -> dict[tuple, list[Place]]:
    """Group places by (phase, depth, stored, unpacking), for the first cluster and attention."""
    first = places[0]
    by_panel: dict[tuple, list[Place]] = {}
    for p in places:
        same = (p.cluster, p.attention) == (first.cluster, first.attention)
        if same and p.stored in _SHOWN:
            by_panel.setdefault((p.phase, p.depth, p.stored, p.unpacking), []).append(p)
    return by_panel


def _panels(places: Sequence[Place], name: str, what: str, of) -> str:
    by_panel = panels(places)
    rows = list(dict.fromkeys(key[:2] for key in by_panel))
    columns = list(dict.fromkeys(key[2:] for key in by_panel))
    figure, axes = new_figure(
        1.8 + 2.4 * len(columns), 0.9 + 1.35 * len(rows), len(rows), len(columns)
    )
    batches = sorted({p.batch for p in places})
    widths = sorted({p.width for p in places})
    for i, ax in enumerate(axes):
        (phase, depth), (stored, unpacking) = rows[i // len(columns)], columns[i % len(columns)]
        marks: dict[tuple[str, float], list[tuple[int, int]]] = {}
        for p in by_panel.get((phase, depth, stored, unpacking), ()):
            point = batches.index(p.batch), widths.index(p.width)
            marks.setdefault(of(p), []).append(point)
        for (label, size), points in marks.items():
            ax.scatter(*zip(*points, strict=True), s=size, label=label, **_STYLES[label])
        ax.set_xlim(-0.6, len(batches) - 0.4)
        ax.set_ylim(-0.6, len(widths) - 0.4)
        last, left = i // len(columns) == len(rows) - 1, i % len(columns) == 0
        ax.set_xticks(range(len(batches)), [f"{b}" for b in batches] if last else [])
        ax.set_yticks(range(len(widths)), [f"{w}" for w in widths] if left else [])
        ax.tick_params(labelsize=SMALL)
        if i < len(columns):
            how = {"xla": "\nunpacked by XLA", "kernel": "\nkernel, assumed", "": "\n"}[unpacking]
            ax.set_title(stored + how, fontsize=SMALL, color=INK)
        if left:
            ax.set_ylabel(f"{phase}\n{depth} layers", fontsize=SMALL, color=INK)
    figure.supxlabel("batch across, width up", fontsize=SMALL, color=MUTED)
    figure.legend(
        *_unique(axes), loc="outside right upper", frameon=False, fontsize=SMALL,
        labelcolor=INK,
    )  # fmt: skip
    first = places[0]
    return to_svg(figure, name, f"{what}, {first.attention} on {first.cluster}")


def _winner(p: Place) -> tuple[str, float]:
    """Return the label of a place, and the size of its mark."""
    if not p.winner:
        return _NOTHING, 10.0
    times = sorted(p.seconds.values())
    return LABELS[p.winner], _size(times[1] / times[0] if len(times) > 1 else 2.0)


def _against(p: Place) -> tuple[str, float]:
    lead = p.lead_over(BASELINE)
    if lead is None:
        return _NOTHING, 10.0
    return (_AHEAD, _size(lead)) if lead > 1 else (_BEHIND, _size(1 / lead))


def _size(lead: float) -> float:
    """Return one of a few sizes, so that a mark is drawn once and used many times."""
    return next((size for most, size in _SIZES if lead <= most), 60.0)


def _unique(axes) -> tuple[list, list]:
    """Return one handle per label, of the largest mark, in the order of _STYLES."""
    by_panel: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            if label not in by_panel or handle.get_sizes()[0] > by_panel[label].get_sizes()[0]:
                by_panel[label] = handle
    labels = [label for label in _STYLES if label in by_panel]
    return [by_panel[label] for label in labels], labels
