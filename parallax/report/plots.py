"""The three plots of a report: memory against capacity, bytes against minimum, the schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from parallax.report import words
from parallax.report.svg import FONT_SIZE, GRID, INK, MUTED, SERIES, new_figure, to_svg
from parallax.results.lens_results import Compilation, StrategyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 7.2
_ROW = 0.42
# Of more events than this only the longest are drawn, and the caption says so.
MOST_EVENTS = 600


def _compiled(results: tuple[StrategyResult, ...]) -> list[tuple[str, Compilation]]:
    return [(_short(r.name), r.compilation) for r in results if r.compilation]


def _short(name: str) -> str:
    # A dollar sign would start matplotlib's mathematics.
    name = words.one_line(name).replace("$", "\\$")
    return name if len(name) <= 24 else name[:21] + "..."


def memory_plot(results: tuple[StrategyResult, ...]) -> str:
    """Plot each strategy's memory per device against usable and whole memory; "" if none."""
    compiled = _compiled(results)
    if not compiled:
        return ""
    figure, (ax,) = new_figure(_WIDTH, 1.15 + _ROW * len(compiled))
    parts = (
        ("parameters", lambda m: m.parameter_bytes),
        ("other arguments", lambda m: max(0, m.argument_bytes - m.parameter_bytes)),
        ("temporaries", lambda m: m.temp_bytes),
        ("output", lambda m: max(0, m.output_bytes - m.alias_bytes)),
    )
    starts = [0.0] * len(compiled)
    for (label, size), colour in zip(parts, SERIES, strict=True):
        widths = [size(c.memory) / 1e9 for _, c in compiled]
        ax.barh(range(len(compiled)), widths, left=starts, height=0.56, color=colour, label=label)
        starts = [a + b for a, b in zip(starts, widths, strict=True)]
    first = compiled[0][1].memory
    usable, capacity = first.usable_bytes / 1e9, first.capacity_bytes / 1e9
    ax.set_xlim(0, max(capacity, *starts) * 1.12)
    for y, (total, (_, c)) in enumerate(zip(starts, compiled, strict=True)):
        ax.annotate(words.in_bytes(c.memory.total_bytes), (total, y), xytext=(5, 0),
                    textcoords="offset points", va="center", color=INK,
                    fontsize=FONT_SIZE)  # fmt: skip
    for x, label, style in ((usable, "usable", "--"), (capacity, "capacity", "-")):
        ax.axvline(x, color=MUTED, linewidth=1, linestyle=style)
        side = ("right", -4) if label == "usable" else ("left", 4)
        ax.annotate(label, (x, 1), xytext=(side[1], 2), xycoords=("data", "axes fraction"),
                    textcoords="offset points", ha=side[0], va="bottom", color=MUTED,
                    fontsize=FONT_SIZE - 1)  # fmt: skip
    _names(ax, [name for name, _ in compiled])
    ax.set_xlabel("GB per device", color=MUTED, fontsize=FONT_SIZE)
    _legend(ax, 4)
    return to_svg(figure, "memory", "Memory per device of each strategy, against the GPU's")


def bytes_plot(results: tuple[StrategyResult, ...]) -> str:
    """Plot the bytes sent per device beside the closed-form minimum; "" if nothing is sent."""
    compiled = [(name, c) for name, c in _compiled(results)]
    sizes = [x for _, c in compiled for x in (c.wire_bytes, c.minimum_bytes) if x]
    if not sizes:
        return ""
    figure, (ax,) = new_figure(_WIDTH, 1.1 + 1.35 * _ROW * len(compiled))
    bars = (
        ("compiled program", SERIES[0], lambda c: c.wire_bytes),
        ("closed-form minimum", SERIES[1], lambda c: c.minimum_bytes if c.has_closed_form else 0.0),
    )
    is_log = max(sizes) > 50 * min(sizes)
    low = min(sizes) / 3e9 if is_log else 0.0
    for i, (label, colour, size) in enumerate(bars):
        places = [y + 0.4 * (i - 0.5) for y in range(len(compiled))]
        widths = [size(c) / 1e9 for _, c in compiled]
        ax.barh(places, [max(0.0, w - low) for w in widths], left=low, height=0.36, color=colour,
                label=label)  # fmt: skip
        for y, width, (_, c) in zip(places, widths, compiled, strict=True):
            text = words.in_bytes(width * 1e9) if i == 0 or c.has_closed_form else "no closed form"
            ax.annotate(text, (max(width, low), y), xytext=(5, 0), textcoords="offset points",
                        va="center", color=INK, fontsize=FONT_SIZE - 0.5)  # fmt: skip
    if is_log:
        ax.set_xscale("log")
        ax.set_xlim(low, max(sizes) / 1e9 * 4)
    else:
        ax.set_xlim(0, max(sizes) / 1e9 * 1.16)
    _names(ax, [name for name, _ in compiled])
    unit = "GB sent per device" + (" (logarithmic)" if is_log else "")
    ax.set_xlabel(unit, color=MUTED, fontsize=FONT_SIZE)
    _legend(ax, 2)
    return to_svg(figure, "bytes", "Bytes each strategy sends, against the closed-form minimum")


def timeline_plot(compilation: Compilation, name: str) -> str:
    """Plot the busiest loop body, compute above communication; "" without events.

    Args:
      compilation: the program whose timeline is drawn.
      name: an identifier that is unique in the page.
    """
    events = longest(compilation.timeline)
    if not events:
        return ""
    figure, (ax,) = new_figure(_WIDTH, 1.55)
    end = max(e.stop_s for e in events)
    scale, unit = next((s, u) for s, u in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
                       if end >= s or u == "ns")  # fmt: skip
    lanes = (
        ("GEMM", SERIES[0], 1.0, lambda e: e.lane == "compute" and e.name.startswith("GEMM")),
        ("other compute", SERIES[2], 1.0,
         lambda e: e.lane == "compute" and not e.name.startswith("GEMM")),
        ("communication", SERIES[1], 0.0, lambda e: e.lane == "communication"),
    )  # fmt: skip
    for label, colour, y, belongs in lanes:
        spans = [(e.start_s / scale, (e.stop_s - e.start_s) / scale) for e in events if belongs(e)]
        if spans:
            ax.broken_barh(
                spans, (y - 0.36, 0.72), facecolors=colour, edgecolors="none", label=label
            )
    ax.set_xlim(0, end / scale)
    ax.set_ylim(-0.5, 1.5)
    ax.set_yticks([1, 0], ["compute", "communication"])
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    ax.set_xlabel(f"{unit} at peak rates (modelled), in the compiled order", color=MUTED,
                  fontsize=FONT_SIZE)  # fmt: skip
    _legend(ax, 3)
    return to_svg(figure, name, "Schedule of the busiest loop: compute and communication lanes")


class Timed(Protocol):
    """Anything with a place in a schedule."""

    @property
    def start_s(self) -> float: ...

    @property
    def stop_s(self) -> float: ...


def longest[Event: Timed](events: tuple[Event, ...]) -> tuple[Event, ...]:
    """Return the longest events in order, at most MOST_EVENTS of them."""
    if len(events) <= MOST_EVENTS:
        return events
    kept = sorted(events, key=lambda e: e.start_s - e.stop_s)[:MOST_EVENTS]
    return tuple(sorted(kept, key=lambda e: e.start_s))


def _names(ax: Axes, names: list[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="x", color=GRID, linewidth=0.6)


def _legend(ax: Axes, columns: int) -> None:
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.08), ncols=columns, frameon=False,
              fontsize=FONT_SIZE - 0.5, labelcolor=INK, handlelength=1, handleheight=1,
              columnspacing=1.4, borderaxespad=0)  # fmt: skip
