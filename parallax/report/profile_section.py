"""Measured against modelled time, operation by operation: as data, as a table and as a plot."""

from pathlib import PurePath
from typing import Any

from parallax.codec import number
from parallax.report import words
from parallax.report.columns import Column, table
from parallax.report.facts import Cell
from parallax.report.grid import DataTable, Heads
from parallax.report.svg import FONT_SIZE, GRID, INK, MUTED, SERIES, SMALL, new_figure, to_svg
from parallax.results.lens_results import StrategyResult
from parallax.results.profile_results import OperationProfile, OperationTime

TITLE = "Measured against modelled, operation by operation"

_COLUMNS: tuple[Column, ...] = (
    ("operation", None, None, lambda x: x.name),
    ("opcode", None, None, lambda x: x.opcode),
    ("source", None, None, lambda x: x.source),
    ("op_name", None, None, lambda x: x.op_name),
    ("executions", "1", "compiled", lambda x: x.executions),
    ("launches", "1", "measured", lambda x: x.launches),
    ("modelled", "s", "modelled", lambda x: x.modelled_s),
    ("measured", "s", "measured", lambda x: x.measured_s),
    ("error", "s", "modelled", lambda x: x.error_s),
)


def profile_to_dict(p: OperationProfile) -> dict[str, Any]:
    """Return a profile as plain data, with all of its operations."""
    modelled = p.modelled_s
    return {
        "trace": p.trace,
        "device": p.device,
        "devices": p.devices,
        "steps": number(p.steps, "1", "measured"),
        "device_time": number(p.device_s, "s", "measured"),
        "attributed_share": number(p.attributed_share, "1", "measured"),
        "busy": number(p.busy_s, "s", "measured"),
        "span": number(p.span_s, "s", "measured"),
        "modelled_time": None if modelled is None else number(modelled, "s", "modelled"),
        "rates": p.rates,
        "operations": table(p.operations, _COLUMNS),
        "unattributed": {n: number(s, "s", "measured") for n, s in p.unattributed.items()},
        "runtime": {n: number(s, "s", "measured") for n, s in p.runtime.items()},
        "notes": list(p.notes),
    }


def profiles(results: tuple[StrategyResult, ...]) -> tuple[tuple[str, OperationProfile], ...]:
    """Return the profiles of a report, by strategy."""
    return tuple(
        (r.name, r.measurement.profile)
        for r in results
        if r.measurement is not None and r.measurement.profile is not None
    )


def profile_grid(name: str, p: OperationProfile) -> DataTable:
    """Return the operations with the largest errors, and what a reader has to know beside them."""
    times: Heads = (("measured", "measured"),)
    if p.rates:
        times = (("modelled", "modelled"), *times, ("error", "modelled"))
    heads: Heads = (("operation", None), ("source", None), ("executions", "compiled"), *times)
    rows = tuple(tuple(Cell(text) for text in _cells(o, bool(p.rates))) for o in p.largest)
    return DataTable(f"{TITLE}: {name}", heads, rows, (*_sentences(p), *p.notes))


def profile_plot(p: OperationProfile, name: str) -> str:
    """Plot the operations with the largest errors, measured beside modelled; "" without any.

    Args:
      p: the profile.
      name: an identifier that is unique in the page.
    """
    shown = p.largest
    if not shown:
        return ""
    figure, (ax,) = new_figure(8.6, 1.1 + 0.42 * len(shown))
    bars = [("measured", SERIES[0], lambda o: o.measured_s)]
    if p.rates:
        bars.append(("modelled", SERIES[1], lambda o: o.modelled_s or 0.0))
    longest = max(size(o) for _, _, size in bars for o in shown)
    scales = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
    scale, unit = next((s, u) for s, u in scales if longest >= s or u == "us")
    height = 0.72 / len(bars)
    for i, (label, colour, size) in enumerate(bars):
        places = [y + height * (i - (len(bars) - 1) / 2) for y in range(len(shown))]
        ax.barh(places, [size(o) / scale for o in shown], height=0.9 * height, color=colour,
                label=label)  # fmt: skip
    ax.set_yticks(range(len(shown)), [_short(o.name) for o in shown])
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.grid(axis="x", color=GRID, linewidth=0.6)
    ax.set_xlabel(f"{unit} per step and device", color=MUTED, fontsize=FONT_SIZE)
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.04), ncols=2, frameon=False,
              fontsize=SMALL, labelcolor=INK, handlelength=1, handleheight=1,
              borderaxespad=0)  # fmt: skip
    return to_svg(figure, name, "Measured time of operations, beside modelled time")


def _cells(o: OperationTime, modelled: bool) -> list[str]:
    times = "depends on data" if o.executions is None else words.digits(o.executions)
    if o.executions != o.launches:
        times += f" ({words.digits(o.launches)} launches)"
    cells = [words.one_line(o.name), _place(o.source), times]
    if modelled:
        cells.append(words.in_seconds(o.modelled_s or 0.0))
    cells.append(words.in_seconds(o.measured_s) if o.launches else "not in the trace")
    if o.error_s is not None:
        cells.append(f"{'+' if o.error_s > 0 else '-'}{words.in_seconds(abs(o.error_s))}")
    return cells


def _place(source: str) -> str:
    """Return the last folder, the file and the line of a source line."""
    return "/".join(PurePath(source).parts[-2:]) if source else ""


def _short(name: str) -> str:
    # A dollar sign would start matplotlib's mathematics.
    name = words.one_line(name).replace("$", "\\$")
    return name if len(name) <= 32 else name[:29] + "..."


def _sentences(p: OperationProfile) -> list[str]:
    first = "errors" if p.rates else "times"
    said = [
        f"{words.counted(p.steps, 'step')} on "
        f"{words.counted(p.devices, f'{p.device} device')}; seconds per step and device. "
        f"The {min(len(p.operations), len(p.largest))} largest {first} of {len(p.operations)} "
        "operations. A collective's measured time holds its wait for the slowest device.",
        f"{words.percent(p.attributed_share)} of {words.in_seconds(p.device_s)} device time is "
        f"of operations of the compiled program; {_listed('not attributed', p.unattributed)}.",
        f"A device was busy for {words.in_seconds(p.busy_s)} of the "
        f"{words.in_seconds(p.span_s)} between its first and last event of a step.",
    ]
    if p.runtime:
        said.append(f"{_listed('Host threads outside of operations', p.runtime)}.")
    if p.modelled_s is not None:
        said.append(
            f"All operations are modelled at {words.in_seconds(p.modelled_s)} ({p.rates}), hidden "
            "transfers and launch gaps included; an error is modelled minus measured."
        )
    said.append(f"Trace for XProf and TensorBoard: {p.trace}")
    return said


def _listed(what: str, seconds: Any, most: int = 6) -> str:
    """Return names with their seconds, the largest first; how many were left out."""
    if not seconds:
        return f"{what}: nothing"
    shown = [f"{words.one_line(n)} {words.in_seconds(s)}" for n, s in list(seconds.items())[:most]]
    if len(seconds) > most:
        rest = sum(list(seconds.values())[most:])
        shown.append(f"{len(seconds) - most} more {words.in_seconds(rest)} (report.json)")
    return f"{what}: {', '.join(shown)}"
