"""Plots whose text keeps its size at any width: bars with error bars, and lanes over time.

Places along the axis are percentages of the SVG's width, so that a phone shows the whole plot; each
bar's values are its <title>, which a pointer shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from parallax.report import words

_TEXT, _BAR, _ROW, _AXIS = 18, 13, 44, 24
_LANE = 16


@dataclass(frozen=True)
class Segment:
    """A stretch of a bar or lane.

    Attributes:
      start, stop: places on the axis.
      series: the colour, 1 to 4.
      title: what a pointer over it shows.
    """

    start: float
    stop: float
    series: int
    title: str


@dataclass(frozen=True)
class Bar:
    """One row of a plot.

    Attributes:
      name, value: the texts above it, left and right.
      segments: its stretches.
      low, high: ends of an error bar; None without one.
      mark: a place that is marked on it, such as a minimum; None without one.
      detail: a text on a line of its own, the value at its right; "" without one.
    """

    name: str
    value: str
    segments: tuple[Segment, ...]
    low: float | None = None
    high: float | None = None
    mark: float | None = None
    detail: str = ""


def bars(
    rows: Sequence[Bar],
    description: str,
    say: Callable[[float], str],
    lines: Sequence[tuple[float, str]] = (),
) -> str:
    """Return bars from zero as an inline <svg>.

    Args:
      rows: from top to bottom.
      description: a text for readers who cannot see the plot.
      say: formats a place of the axis.
      lines: vertical lines, each with a name.
    """
    places = [x for row in rows for x in (*(s.stop for s in row.segments), row.high, row.mark) if x]
    scale = _Scale(max([*places, *(x for x, _ in lines)]))
    top = _TEXT if lines else 0
    starts = [top]
    for row in rows:
        starts.append(starts[-1] + _ROW + (_TEXT if row.detail else 0))
    *starts, bottom = starts
    drawn = [*_ticks(scale, say, top, bottom)]
    drawn += [_text(scale.at(x), 12, name, "muted", scale.anchor(x)) for x, name in lines]
    for row, y in zip(rows, starts, strict=True):
        bar = y + _ROW - 22 + (_TEXT if row.detail else 0)
        drawn += _texts(row, y)
        drawn += _bar(row, scale, bar)
        drawn += [_line(scale.at(x), bar - 4, bar + _BAR + 4, "limit") for x, _ in lines]
    return _svg(drawn, bottom + _AXIS, description)


def lanes(
    rows: Sequence[tuple[str, str, Sequence[tuple[str, Sequence[Segment]]]]],
    description: str,
    say: Callable[[float], str],
) -> str:
    """Return several schedules on one time axis as an inline <svg>.

    Args:
      rows: of each schedule its name, a text at the right, and its lanes with their names.
      description, say: as for `bars`.
    """
    stops = [s.stop for _, _, of in rows for _, segments in of for s in segments]
    scale, y, drawn = _Scale(max(stops)), 0, []
    for name, value, of in rows:
        drawn += [_text("0", y + 15, name, "name"), _text("100%", y + 15, value, "muted", "end")]
        y += _TEXT + 4
        for lane, segments in of:
            drawn.append(_text("0", y + 10, lane, "muted"))
            drawn += [_rect(s, scale, y + 14, _LANE) for s in segments]
            y += _LANE + 20
        y += 8
    return _svg([*_ticks(scale, say, 0, y), *drawn], y + _AXIS, description)


class _Scale:
    """A linear axis from zero, with a little room at its end."""

    def __init__(self, most: float):
        self.most = most * 1.02 or 1.0

    def at(self, x: float) -> str:
        return f"{100 * x / self.most:.3f}".rstrip("0").rstrip(".") + "%"

    def anchor(self, x: float) -> str:
        return "end" if x > 0.5 * self.most else "start"

    def ticks(self) -> list[float]:
        """Return three to five round places from zero."""
        size = 10.0 ** math.floor(math.log10(self.most / 2))
        step = next(size * k for k in (1, 2, 5, 10) if self.most / (size * k) < 4.5)
        return [step * k for k in range(int(self.most / step) + 1)]


def _texts(row: Bar, y: int) -> list[str]:
    drawn = [_text("0", y + 16, row.name, "name")]
    if row.detail:
        drawn.append(_text("0", y + 16 + _TEXT, row.detail, "muted"))
    place = y + 16 + (_TEXT if row.detail else 0)
    return [*drawn, _text("100%", place, row.value, "", "end")]


def _bar(row: Bar, scale: _Scale, bar: int) -> list[str]:
    drawn = [_rect(s, scale, bar, _BAR) for s in row.segments]
    middle = bar + _BAR / 2
    if row.low is not None and row.high is not None:
        a, b = scale.at(row.low), scale.at(row.high)
        drawn.append(f'<line class="whisker" x1="{a}" x2="{b}" y1="{middle}" y2="{middle}"/>')
        drawn += [_line(x, middle - 4, middle + 4, "whisker") for x in (a, b)]
    if row.mark is not None:
        drawn.append(_line(scale.at(row.mark), bar - 3, bar + _BAR + 3, "mark"))
    return drawn


def _ticks(scale: _Scale, say, top: float, bottom: float):
    for x in scale.ticks():
        yield _line(scale.at(x), top, bottom + 2, "grid")
        anchor = "start" if x == 0 else "end" if x > 0.93 * scale.most else "middle"
        yield _text(scale.at(x), bottom + 17, "0" if x == 0 else say(x), "muted", anchor)


def _rect(s: Segment, scale: _Scale, y: float, height: float) -> str:
    width = scale.at(max(s.stop - s.start, 0.0005 * scale.most))
    return (
        f'<rect class="s{s.series}" x="{scale.at(s.start)}" y="{y}" width="{width}" '
        f'height="{height}"><title>{_said(s.title)}</title></rect>'
    )


def _line(x: str, top: float, bottom: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'


def _text(x: str, y: float, text: str, kind: str, anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x}" y="{y}" text-anchor="{anchor}">{_said(text)}</text>'


def _said(text: str) -> str:
    return escape(words.one_line(text))


def _svg(drawn: Sequence[str], height: float, description: str) -> str:
    label = escape(description, quote=True)
    return (
        f'<svg class="bars" role="img" aria-label="{label}" height="{height:g}">'
        + "".join(drawn) + "</svg>"
    )  # fmt: skip
