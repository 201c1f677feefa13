"""The plots of a report: throughput, memory, bytes against their minimum, the schedules."""

from __future__ import annotations

from typing import Protocol

from parallax.report import words
from parallax.report.bars import Bar, Segment, bars, lanes
from parallax.results.lens_results import Compilation, Memory, StrategyResult

# Of more events than this only the longest are drawn, and the caption says so.
MOST_EVENTS = 600
# The parts of a device's memory, from the left, with their series.
MEMORY_PARTS = (
    ("parameters", 1), ("other arguments", 3), ("temporaries", 2), ("output", 4),
)  # fmt: skip
LANES = (("GEMM", 1), ("other compute", 3), ("communication", 2))


def _short(name: str) -> str:
    name = words.one_line(name)
    return name if len(name) <= 28 else name[:25] + "..."


def throughput_plot(results: tuple[StrategyResult, ...]) -> str:
    """Plot each strategy's tokens/s with its error bar, the fastest first; "" without any."""
    timed = [(r, r.prediction.tokens_per_s) for r in results if r.prediction is not None]
    if not timed:
        return ""
    timed.sort(key=lambda pair: (not _fits(pair[0]), -pair[1].value))
    rows = []
    for i, (result, rate) in enumerate(timed):
        text, said = words.in_tokens_per_s(rate.value), ""
        if rate.low is not None and rate.high is not None:
            low, high = words.in_tokens_per_s(rate.low), words.in_tokens_per_s(rate.high)
            said = f", 80 % error bar {low} to {high}"
        value = text if _fits(result) else f"does not fit; {text}"
        series = 1 if i == 0 and _fits(result) else 4
        segment = Segment(0, rate.value, series, f"{result.name}: {text}{said}")
        rows.append(Bar(_short(result.name), value, (segment,), rate.low, rate.high))
    return bars(rows, "Modelled throughput of each strategy with its 80 % error bar",
                lambda x: words.in_tokens_per_s(x).removesuffix(" tokens/s"))  # fmt: skip


def _fits(result: StrategyResult) -> bool:
    return result.compilation is None or result.compilation.memory.fits


def memory_plot(results: tuple[StrategyResult, ...]) -> str:
    """Plot each strategy's memory per device against usable and whole memory; "" if none."""
    compiled = [(r.name, r.compilation) for r in results if r.compilation]
    if not compiled:
        return ""
    rows = []
    for name, c in compiled:
        start, segments = 0.0, []
        for (part, series), size in zip(MEMORY_PARTS, _parts(c.memory), strict=True):
            title = f"{name}: {part} {words.in_bytes(size)}"
            segments += [Segment(start, start + size, series, title)] if size else []
            start += size
        rows.append(Bar(_short(name), words.in_bytes(c.memory.total_bytes), tuple(segments)))
    first = compiled[0][1].memory
    usable = f"usable {words.in_bytes(first.usable_bytes)}"
    return bars(rows, "Memory per device of each strategy, against the GPU's", words.in_bytes,
                [(first.usable_bytes, usable)])  # fmt: skip


def _parts(m: Memory) -> tuple[float, ...]:
    other = max(0, m.argument_bytes - m.parameter_bytes) + m.constant_bytes
    return m.parameter_bytes, other, m.temp_bytes, max(0, m.output_bytes - m.alias_bytes)


def bytes_plot(results: tuple[StrategyResult, ...]) -> str:
    """Plot the bytes sent per device, the closed-form minimum marked; "" if nothing is sent."""
    compiled = [(r.name, r.compilation) for r in results if r.compilation]
    if not any(c.wire_bytes for _, c in compiled):
        return ""
    rows = []
    for name, c in compiled:
        sent, minimum = words.in_bytes(c.wire_bytes), c.minimum_bytes if c.has_closed_form else None
        said = "no closed form" if minimum is None else f"minimum {words.in_bytes(minimum)}"
        segment = Segment(0, c.wire_bytes, 1, f"{name}: {sent} sent, {said}")
        rows.append(Bar(_short(name), f"{sent}, {said}" if c.wire_bytes else "nothing sent",
                        (segment,) if c.wire_bytes else (), mark=minimum or None))  # fmt: skip
    return bars(rows, "Bytes each strategy sends, the closed-form minimum marked", words.in_bytes)


def schedules_plot(results: tuple[StrategyResult, ...]) -> str:
    """Plot the busiest loop bodies on one time axis, compute above communication; "" if none."""
    rows = []
    for name, c in ((r.name, r.compilation) for r in results if r.compilation):
        if not c.timeline:
            continue
        spans = {"compute": [], "communication": []}
        for event in longest(c.timeline):
            took = words.in_seconds(event.stop_s - event.start_s)
            spans[event.lane].append(
                Segment(event.start_s, event.stop_s, _series(event), f"{event.name}: {took}")
            )
        end = words.in_seconds(max(e.stop_s for e in c.timeline))
        rows.append((_short(name), f"{_counted(c)}, {end}", tuple(spans.items())))
    if not rows:
        return ""
    return lanes(rows, "Schedules of the busiest loops: compute and communication lanes",
                 words.in_seconds)  # fmt: skip


def _counted(c: Compilation) -> str:
    count = len(c.timeline)
    if count > MOST_EVENTS:
        return f"{count:,} instructions, the {MOST_EVENTS} longest are drawn"
    return f"{count:,} instructions"


def _series(event) -> int:
    if event.lane == "communication":
        return 2
    return 1 if event.name.startswith("GEMM") else 3


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
