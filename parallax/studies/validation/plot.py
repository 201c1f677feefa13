"""The plot of a validation: modelled against measured, with the line where both are equal."""

from collections.abc import Sequence

from parallax.report.svg import FONT_SIZE, GRID, INK, MUTED, SERIES, SMALL, new_figure, to_svg
from parallax.studies.validation.scores import Judged

_MOST_NAMED = 8


def section_plot(title: str, rows: Sequence[Judged], name: str) -> str:
    """Plot the rows of a section on logarithmic axes, coloured by regime.

    Args:
      title: what the rows are, for readers who cannot see the plot.
      rows: rows of one kind of figure.
      name: a name unique in the page.
    """
    figure, (ax,) = new_figure(8.6, 5.0)
    is_memory = all(row.figure == "memory" for row in rows)
    scale, unit = (1e-9, "GB") if is_memory else (1e3, "ms")
    regimes = list(dict.fromkeys(row.regime for row in rows))
    for i, regime in enumerate(regimes):
        mine = [row for row in rows if row.regime == regime]
        ax.scatter(
            [row.measured * scale for row in mine], [row.modelled * scale for row in mine],
            s=10, alpha=0.6, linewidths=0, color=SERIES[i % len(SERIES)],
            marker="os^D"[i // len(SERIES) % 4],
            label=regime if len(regimes) <= _MOST_NAMED else None,
        )  # fmt: skip
    ends = [f(row.measured * scale for row in rows) for f in (min, max)]
    ax.plot(ends, ends, color=MUTED, linewidth=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(color=GRID, linewidth=0.6)
    ax.set_xlabel(f"measured, {unit}", color=MUTED, fontsize=FONT_SIZE)
    ax.set_ylabel(f"modelled, {unit}", color=MUTED, fontsize=FONT_SIZE)
    if 1 < len(regimes) <= _MOST_NAMED:
        ax.legend(frameon=False, fontsize=SMALL, labelcolor=INK)
    return to_svg(figure, name, f"{title}: modelled against measured, on logarithmic axes")
