"""The pictures of an explanation: the schedule with lines of code, and the mesh with its shards."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from parallax.explanations.facts import ArraySplit, Facts, TimedOperation
from parallax.report.explanation_words import copies_of, dims_of, split_of
from parallax.report.plots import longest
from parallax.report.svg import FONT_SIZE, GRID, INK, MUTED, ON, SERIES, SMALL, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 9.6
# Shares of the schedule: from which a line has room for its number, and the width of a letter.
_LABELLED, _LETTER = 0.012, 0.011
_MOST_ARGUMENTS, _MOST_DEVICES = 4, 128


def schedule_plot(facts: Facts) -> str:
    """Plot the schedule, with the source line under each stretch of it; "" without events."""
    events = longest(facts.timeline)
    if not events:
        return ""
    figure, (ax,) = new_figure(_WIDTH, 2.3)
    end = max(e.stop_s for e in events)
    scale, unit = next((s, u) for s, u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
                       if end >= s or u == "ns")  # fmt: skip
    for label, colour, y, belongs in (
        ("GEMM", SERIES[0], 1.0, lambda e: e.lane == "compute" and e.name.startswith("GEMM")),
        ("other compute", SERIES[2], 1.0,
         lambda e: e.lane == "compute" and not e.name.startswith("GEMM")),
        ("communication", SERIES[1], 0.0, lambda e: e.lane == "communication"),
    ):  # fmt: skip
        spans = [(e.start_s / scale, (e.stop_s - e.start_s) / scale) for e in events if belongs(e)]
        if spans:
            ax.broken_barh(spans, (y - 0.2, 0.4), facecolors=colour, edgecolors="none", label=label)
    for lane, y in (("compute", 1.0), ("communication", 0.0)):
        _write_lines(ax, [e for e in events if e.lane == lane], y, end, scale)
    ax.set_xlim(0, end / scale)
    ax.set_ylim(-0.75, 1.3)
    ax.set_yticks([1, 0], ["compute", "communication"])
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    ax.set_xlabel(f"{unit} at peak rates (modelled), in the compiled order", color=MUTED,
                  fontsize=FONT_SIZE)  # fmt: skip
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.04), ncols=3, frameon=False,
              fontsize=SMALL, labelcolor=INK, handlelength=1, handleheight=1,
              borderaxespad=0)  # fmt: skip
    return to_svg(figure, "schedule", "Schedule of the program with the lines of code")


def _write_lines(
    ax: Axes, events: list[TimedOperation], y: float, end: float, scale: float
) -> None:
    """Write under a lane the line of each stretch that is long enough."""
    for stretch in _stretches(events):
        first, last, line = stretch[0], stretch[-1], stretch[0].line
        width = last.stop_s - first.start_s
        if line is None or width < _LABELLED * end:
            continue
        has_room = width > _LETTER * (len(str(line)) + 1) * end
        ax.annotate(
            str(line).replace("$", "\\$") if has_room else f":{line.line}",
            ((first.start_s + last.stop_s) / 2 / scale, y - 0.24), ha="center", va="top",
            color=MUTED, fontsize=SMALL, rotation=0 if has_room else 90,
        )  # fmt: skip


def _stretches(events: list[TimedOperation]) -> list[list[TimedOperation]]:
    """Return runs of events of one source line without a gap."""
    found: list[list[TimedOperation]] = []
    for event in events:
        before = found[-1][-1] if found else None
        if before and before.line == event.line and event.start_s <= before.stop_s * (1 + 1e-9):
            found[-1].append(event)
        else:
            found.append([event])
    return found


def mesh_plot(facts: Facts) -> str:
    """Plot the mesh for each of the largest arguments, with the part that each device holds.

    Arguments of the same shape and split are drawn once; "" where nothing can be drawn.
    """
    axes = {name: size for name, size in facts.axes.items() if size > 1}
    alike: dict[tuple, list[ArraySplit]] = {}
    for s in facts.arguments:
        if s.axes and all(a in axes for names in s.axes for a in names):
            alike.setdefault((s.dtype, s.dims, s.axes), []).append(s)
    shown = sorted(alike.values(), key=lambda group: -sum(s.n_bytes for s in group))
    shown = shown[:_MOST_ARGUMENTS]
    if not shown or not axes or math.prod(axes.values()) > _MOST_DEVICES:
        return ""
    rows = math.prod(list(axes.values())[:-1])
    figure, panels = new_figure(_WIDTH, len(shown) * (0.75 + 0.24 * rows), rows=len(shown))
    for ax, group in zip(panels, shown, strict=True):
        _draw_shards(ax, group[0], axes)
        more = f" and {len(group) - 1} alike" if len(group) > 1 else ""
        title = (
            f"{group[0].name}{more}:  {dims_of(group[0])}  {split_of(group[0])}  "
            f"copies: {copies_of(group[0], facts)}"
        )
        ax.set_title(title.replace("$", "\\$"), loc="left", color=INK, fontsize=FONT_SIZE)
    return to_svg(figure, "mesh", "The mesh with the shards of the largest arguments")


def _parts(split: ArraySplit, axes: dict[str, int]) -> int:
    return math.prod(axes.get(a, 1) for names in split.axes for a in names)


def _draw_shards(ax: Axes, split: ArraySplit, axes: dict[str, int]) -> None:
    *outer, last = axes
    used = [a for names in split.axes for a in names]
    parts = _parts(split, axes)
    heads = []
    for row, place in enumerate(itertools.product(*(range(axes[a]) for a in outer))):
        at = dict(zip(outer, place, strict=True))
        heads.append(", ".join(f"{a}={i}" for a, i in at.items()))
        for column in range(axes[last]):
            at[last] = column
            shard = 0
            for a in used:
                shard = shard * axes[a] + at[a]
            ax.barh([row], [0.94], left=[column + 0.03], height=0.86, color=SERIES[0],
                    alpha=0.2 + 0.6 * shard / max(1, parts - 1))  # fmt: skip
            ax.annotate(str(shard), (column + 0.5, row), ha="center", va="center", color=ON,
                        fontsize=SMALL)  # fmt: skip
    ax.set_yticks(range(len(heads)), heads)
    ax.set_ylim(len(heads) - 0.5, -0.5)
    ax.set_xlim(0, axes[last])
    ax.set_xticks([c + 0.5 for c in range(axes[last])],
                  [f"{last}={c}" if c == 0 else str(c) for c in range(axes[last])])  # fmt: skip
    ax.spines["bottom"].set_visible(False)
