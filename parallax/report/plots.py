"""Plots of a report as inline SVG; text stays text, colours follow the page."""

import io
from collections.abc import Sequence

from parallax.results import Compilation, StrategyResult

# Okabe and Ito's colours: told apart by colour-blind readers.
_PARTS = (
    ("parameters", "#0072B2"),
    ("other arguments", "#56B4E9"),
    ("temporaries", "#E69F00"),
    ("output", "#009E73"),
)
_GREY = "#888888"


def memory(results: Sequence[StrategyResult]) -> str:
    """Bytes of a device's memory by use, against its capacity."""
    compiled = [(r.name, r.compilation) for r in results if r.compilation]
    figure, axes = _figure(len(compiled))
    for row, (_, c) in enumerate(compiled):
        m, left = c.memory, 0.0
        sizes = (m.parameter_bytes, m.argument_bytes - m.parameter_bytes,
                 m.temp_bytes - m.alias_bytes, m.output_bytes)  # fmt: skip
        for (label, colour), size in zip(_PARTS, sizes, strict=True):
            axes.barh(row, size / 1e9, left=left, color=colour, height=0.6,
                      label=label if row == 0 else None)  # fmt: skip
            left += size / 1e9
    m = compiled[0][1].memory
    axes.axvline(m.capacity_bytes / 1e9, color=_GREY, lw=1)
    axes.axvline(m.usable_bytes / 1e9, color="#D55E00", lw=1, ls="--",
                 label=f"usable ({m.usable_fraction:.0%} of capacity)")  # fmt: skip
    _finish(axes, [n for n, _ in compiled], "GB a device (compiled)")
    return _svg(figure)


def traffic(results: Sequence[StrategyResult]) -> str:
    """Bytes leaving a device against the closed-form minimum."""
    compiled = [(r.name, r.compilation) for r in results if r.compilation]
    figure, axes = _figure(len(compiled))
    for row, (_, c) in enumerate(compiled):
        axes.barh(row - 0.17, c.wire_bytes / 1e9, height=0.32, color="#0072B2",
                  label="compiled" if row == 0 else None)  # fmt: skip
        if c.has_closed_form:
            axes.barh(row + 0.17, c.minimum_bytes / 1e9, height=0.32, color="#E69F00",
                      label="minimum (derived)" if row == 0 else None)  # fmt: skip
        if not c.wire_bytes:
            axes.text(0, row, " nothing", va="center", color=_GREY)
    _finish(axes, [n for n, _ in compiled], "GB leaving a device in one pass")
    return _svg(figure)


def timeline(compilation: Compilation) -> str:
    """The hottest loop body: compute above, transfers below, in compiled order."""
    lanes = {"compute": 1, "communication": 0}
    figure, axes = _figure(2)
    for event in compilation.timeline:
        is_gemm = event.name.startswith("GEMM")
        colour = "#D55E00" if event.lane == "communication" else "#0072B2" if is_gemm else "#56B4E9"
        axes.barh(lanes[event.lane], (event.stop_s - event.start_s) * 1e3, left=event.start_s * 1e3,
                  height=0.7, color=colour, lw=0)  # fmt: skip
    _finish(axes, ["transfers", "compute"], "ms at peak rates (modelled), order as compiled",
            legend=False)  # fmt: skip
    return _svg(figure)


def _figure(rows: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.9 + 0.5 * max(rows, 1)), layout="constrained")
    return figure, figure.add_subplot()


def _finish(axes, labels: Sequence[str], unit: str, legend: bool = True) -> None:
    axes.set_yticks(range(len(labels)), labels)
    if legend:
        axes.invert_yaxis()
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0),
                    labelcolor=_GREY)  # fmt: skip
    axes.set_xlabel(unit, fontsize=9, color=_GREY)
    axes.tick_params(colors=_GREY, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(_GREY)


def _svg(figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "parallax"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
