"""The plots of a sweep: throughput and memory along the axis, one line per strategy."""

from collections.abc import Callable

from parallax.report import words
from parallax.report.svg import FONT_SIZE, GRID, INK, MUTED, SERIES, SMALL, new_figure, to_svg
from parallax.results.lens_results import Tag
from parallax.results.sweep_results import PointFigures, Sweep

_WIDTH, _HEIGHT = 8.6, 3.6
_STYLES = ("-", "--", ":", "-.")


def sweep_plots(sweep: Sweep) -> tuple[tuple[str, Tag, str], ...]:
    """Return the head, tag and SVG of each plot; none if no point ran."""
    if not any(p.found for p in sweep.points):
        return ()
    return (
        ("Throughput", "modelled",
         _plot(sweep, "sweep-tokens", "tokens/s", lambda f: f.tokens_per_s.value)),
        ("Memory per device; the dashed grey line is the usable memory", "compiled",
         _plot(sweep, "sweep-memory", "GB per device", lambda f: f.memory.value / 1e9,
               lambda f: f.usable.value / 1e9)),
    )  # fmt: skip


def _plot(
    sweep: Sweep,
    name: str,
    unit: str,
    read: Callable[[PointFigures], float],
    limit: Callable[[PointFigures], float] | None = None,
) -> str:
    figure, (ax,) = new_figure(_WIDTH, _HEIGHT)
    ends, titles = [], {}
    for i, strategy in enumerate(sweep.strategies):
        series = [(p.value, read(p.found)) for p in sweep.of(strategy) if p.found is not None]
        if not series:
            continue
        colour = SERIES[i % len(SERIES)]
        ax.plot(*zip(*series, strict=True), color=colour, linewidth=1.8,
                linestyle=_STYLES[i // len(SERIES) % len(_STYLES)])  # fmt: skip
        for n, (x, y) in enumerate(series):
            titles[f"p{i}-{n}"] = f"{strategy} at {sweep.axis} {x:,}: {words.digits(y)} {unit}"
            ax.scatter([x], [y], s=16, color=colour, linewidths=0, gid=f"p{i}-{n}", zorder=3)
        ends.append((series[-1], strategy, colour))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    for place, strategy, shift in _apart(ends, ax.get_ylim()):
        label = words.one_line(strategy).replace("$", "\\$")
        ax.annotate(label, place, xytext=(7, shift), textcoords="offset points", va="center",
                    color=INK, fontsize=SMALL, annotation_clip=False)  # fmt: skip
    if limit is not None:
        usable = next(limit(p.found) for p in sweep.points if p.found is not None)
        ax.axhline(usable, color=MUTED, linewidth=1, linestyle="--")
    low, high = sweep.values[0], sweep.values[-1]
    # This leaves room on the right for the names, on a logarithmic axis.
    ax.set_xlim(low / 1.1, high * max(2.0, (high / low) ** 0.35))
    ax.set_xticks(sweep.values, [f"{v:,}" for v in sweep.values])
    ax.minorticks_off()
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_xlabel(sweep.axis, color=MUTED, fontsize=FONT_SIZE)
    ax.set_ylabel(unit, color=MUTED, fontsize=FONT_SIZE)
    return to_svg(
        figure, name, f"{unit} of each strategy against {sweep.axis}, logarithmic", titles
    )


def _apart(ends, limits):
    """Return the labels' place, name and shift in points, moved until none covers another."""
    import math

    low, high = (math.log10(x) for x in limits)
    scale = (_HEIGHT - 0.8) * 72 / max(high - low, 1e-9)
    last = -math.inf
    for place, name, _ in sorted(ends, key=lambda end: end[0][1]):
        height = (math.log10(place[1]) - low) * scale
        at = max(height, last + FONT_SIZE + 2)
        yield place, name, at - height
        last = at
