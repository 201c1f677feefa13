"""The explorer: one page on which a person moves a model and its hardware and sees who wins."""

import base64
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parallax.report.files import save_files
from parallax.report.templates import render_page
from parallax.studies.regimes.explored import (
    LAYERS,
    QUERIES_PER_KEY,
    SMOOTH,
    TERMS,
    Axes,
    Case,
    Found,
    Place,
    exact,
    hardware,
    look_up,
    model,
    tabulate,
)

TITLE = "Which strategy, where"
START = Place(8192, 64, 8192, 50.0, 16, 64, 0)
SERIES = (1, 3, 2, 4)  # colours of TERMS
# Widths whose heads can be sliced as every strategy slices them.
WIDTHS = (2048, 4096, 6144, 8192, 12_288, 16_384)
_STEPS = 1500  # of an integer in the page, per unit of a natural logarithm
_BYTES = math.log(1e9)


@dataclass(frozen=True)
class Off:
    """How far the interpolation is off, at places off the grid.

    Attributes:
      seconds, held_bytes: relative errors of each strategy that fits, sorted.
      places: places tried. same: those where the table and the model have the same winner.
      regret: where they differ, how much slower the table's choice is at most.
    """

    seconds: tuple[float, ...]
    held_bytes: tuple[float, ...]
    places: int
    same: int
    regret: float

    def said(self) -> str:
        """Say the errors in a sentence or two."""
        half, most = (percent(_at(self.seconds, q)) for q in (0.5, 0.9))
        return (
            f"At {self.places} random places between the points of the table, "
            f"{len(self.seconds):,} times of strategies that fit are off by {half} at the median, "
            f"by {most} or less in nine of ten, by {percent(self.seconds[-1])} at worst, "
            "against the analytical model itself; memory "
            f"by {percent(_at(self.held_bytes, 0.9))} or less in nine of ten, by "
            f"{percent(self.held_bytes[-1])} at worst. The winner is the same at {self.same} of "
            f"them; elsewhere the page's choice is at most {percent(self.regret)} slower."
        )


def percent(share: float) -> str:
    """Format an error: 1.2 %."""
    return f"{100 * share:.1f} %"


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def places_off(axes: Axes, count: int, seed: int = 0) -> Iterator[Place]:
    """Yield places that can be chosen and are no point of the table, the same ones for a seed."""
    rng = random.Random(seed)
    values = {name: axis for name, _, axis, _ in sliders(axes)}
    nodes = {"length": axes.lengths, "width": axes.widths, "bandwidth": axes.bandwidths}
    between = {n: [x for x in values[n] if x not in nodes[n]] or values[n] for n in nodes}
    for _ in range(count):
        yield Place(
            rng.choice(between["length"]), int(rng.choice(values["batch"])),
            rng.choice(between["width"]), rng.choice(between["bandwidth"]),
            rng.choice(axes.devices), rng.choice(axes.heads), rng.choice(axes.experts),
        )  # fmt: skip


def cases_at(cases: Sequence[Case], place: Place) -> list[Case]:
    """Return the strategies that can run with a place's devices, heads and experts."""
    wanted = place.devices, place.heads, place.experts
    return [c for c in cases if (c.devices, c.heads, c.experts) == wanted and not c.why_not]


def measure(axes: Axes, cases: Sequence[Case], count: int = 100) -> Off:
    """Hold the interpolation against the analytical model off the grid.

    Cost: some milliseconds per place and strategy.
    """
    seconds, held, same, regret = [], [], 0, 0.0
    for place in places_off(axes, count):
        usable = hardware(place.devices, place.bandwidth).usable_bytes
        pairs: list[tuple[Found, float]] = []
        for case in cases_at(cases, place):
            found = look_up(axes, case, place, usable)
            true_seconds, true_bytes = exact(found, place)
            held.append(abs(found.held_bytes / true_bytes - 1))
            if found.held_bytes <= usable:
                seconds.append(abs(found.seconds / true_seconds - 1))
                pairs.append((found, true_seconds))
        if not pairs:
            same += 1
            continue
        chosen = min(pairs, key=lambda pair: pair[0].seconds)
        loss = chosen[1] / min(true for _, true in pairs) - 1
        same, regret = same + (loss == 0), max(regret, loss)
    return Off(tuple(sorted(seconds)), tuple(sorted(held)), count, same, regret)


def packed(axes: Axes, cases: Sequence[Case], off: Off) -> dict[str, Any]:
    """Return the table as JSON data: integers of logarithms, and shares of 255."""
    ticks, held, shares, listed = [], [], [], []
    for case in cases:
        entry: dict[str, Any] = {
            "name": case.strategy, "devices": case.devices, "heads": case.heads,
            "experts": case.experts, "mesh": case.mesh,
        }  # fmt: skip
        if case.why_not:
            listed.append({**entry, "why": case.why_not})
            continue
        # Nothing crosses the network inside a node: one bandwidth stands for all.
        kept = slice(None) if case.devices > 8 else slice(1)
        entry |= {
            "parts": case.parts, "stages": case.stages, "overlaps": case.overlaps,
            "start": sum(map(len, ticks)), "held": sum(map(len, held)),
        }  # fmt: skip
        ticks.append(_integers(np.log(case.seconds[..., kept])))
        held.append(_integers(np.log(case.held_bytes) - _BYTES))
        shares.append(np.round(255 * case.shares[..., kept, :]).astype("u1").ravel())
        listed.append(entry)
    first = sum(map(len, ticks))
    for entry in listed:
        if "held" in entry:
            entry["held"] += first
    return {
        "axes": {"length": axes.lengths, "size": axes.sizes, "width": axes.widths,
                 "bandwidth": axes.bandwidths},
        "terms": TERMS, "series": SERIES, "unit": 1 / _STEPS, "smooth": SMOOTH, "tick": 0.0,
        "bytes": _BYTES,
        "usable": hardware(8, 50.0).usable_bytes, "doubt": _at(off.seconds, 0.9),
        "sliders": [(name, values, said) for name, _, values, said in sliders(axes)],
        "choices": [name for name, *_ in choices(axes)],
        "start": {name: getattr(START, name) for name in Place.__dataclass_fields__},
        "cases": listed, "logs": _base64([*ticks, *held]), "shares": _base64(shares),
    }  # fmt: skip


def _integers(logarithms: np.ndarray) -> np.ndarray:
    return np.round(_STEPS * logarithms).astype("<i2").ravel()


def _base64(arrays: Sequence[np.ndarray]) -> str:
    return base64.b64encode(b"".join(a.tobytes() for a in arrays)).decode()


def sliders(axes: Axes) -> tuple[tuple[str, str, tuple[float, ...], str], ...]:
    """Return name, label, values and unit of each control that moves."""
    return (
        ("length", "Length", _between(axes.lengths), " tokens"),
        ("batch", "Batch", tuple(2**n for n in range(10)), " sequences"),
        ("width", "Width", tuple(w for w in WIDTHS if w <= axes.widths[-1]), ""),
        ("bandwidth", "Network", _between(axes.bandwidths), " GB/s per GPU"),
    )


def choices(axes: Axes) -> tuple[tuple[str, str, tuple[int, ...], str], ...]:
    """Return name, label and values of each control with few values, and what 0 is called."""
    return (
        ("devices", "GPUs", axes.devices, ""), ("heads", "Heads", axes.heads, ""),
        ("experts", "Experts per layer", axes.experts, "none: a dense model"),
    )  # fmt: skip


def _between(axis: Sequence[float]) -> tuple[float, ...]:
    """Return each power of two times the first node, and one and a half times it."""
    found, x = [], axis[0]
    while x <= axis[-1]:
        found += [x, 1.5 * x]
        x *= 2
    whole = (int(x) if x == int(x) else x for x in found if x <= axis[-1])
    return tuple(whole)


def page(axes: Axes, cases: Sequence[Case], off: Off) -> str:
    """Render the explorer as one self-contained page."""
    table = json.dumps(packed(axes, cases, off), separators=(",", ":")).replace("<", "\\u003c")
    points = sum(c.seconds.size for c in cases)
    return render_page(
        "explorer.html.j2", Path(__file__).parent,
        title=TITLE, answer="This page computes in the browser.", table=table,
        terms=tuple(zip(TERMS, SERIES, strict=True)),
        sliders=sliders(axes), choices=choices(axes), notes=NOTES,
        error=f"The table holds {points:,} points of the analytical model. {off.said()}",
    )  # fmt: skip


NOTES = (
    "modelled: synthetic traces whose cost is estimated by the cost model; no GPU has run them. A "
    "difference of a few percent is below the model's error.",
    f"The model has {LAYERS} layers, {QUERIES_PER_KEY} query heads to a key/value head, a gated "
    f"MLP four times as wide as the model, in {model(2048, 32, 0).dtype}. Experts are as wide as "
    "the model, four per token: as many FLOPs as the dense MLP.",
    "The time is that of one forward pass of the batch, each strategy at the fastest microbatch "
    "that fits. A batch smaller than the parts it is split into is padded.",
    "The network has the measured efficiency of NDR InfiniBand at every bandwidth.",
    "Length, microbatch, width and bandwidth are interpolated between the points of the table, in "
    "their logarithms and in that of the time. The other choices are points of the table.",
)


def save(
    folder: str | Path,
    axes: Axes | None = None,
    *,
    processes: int = 2,
    on_progress: Callable[[str], None] = lambda line: None,
) -> tuple[tuple[Path, ...], str]:
    """Tabulate the model, measure the interpolation, and save explorer.html.

    Returns:
      The paths written; how far the interpolation is off, in words.
    """
    axes = axes or Axes()
    cases = tabulate(axes, processes=processes, on_progress=on_progress)
    on_progress("the interpolation against the model")
    off = measure(axes, cases)
    return save_files(folder, {"explorer.html": page(axes, cases, off)}), off.said()
