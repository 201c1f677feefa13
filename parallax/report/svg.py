"""Matplotlib figures as SVG for a page: the page's fonts and colours, no outside reference."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours drawn with, and the page's CSS variables that replace them.
INK, MUTED, GRID, ON = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#010001", "#010002", "#010003", "#010004")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    ON: "var(--on)",
    **{colour: f"var(--s{i})" for i, colour in enumerate(SERIES, start=1)},
}
_ON_WHITE = {
    "--ink": "#1c1f23", "--muted": "#5c6168", "--line": "#e0ddd6", "--on": "#101214",
    "--s1": "#2f67b1", "--s2": "#cf7a1e", "--s3": "#57a195", "--s4": "#a19b8d",
}  # fmt: skip
# An <svg> is never drawn smaller than its own size, so that text keeps these pixels.
FONT_SIZE, SMALL = 12, 11
_MOST_SCALED = 1.2


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """Create a figure, sized in inches, and its axes, row by row, without global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.patch.set_visible(False)
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
        ax.spines["bottom"].set_color(GRID)
        ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=FONT_SIZE, length=0)
        ax.set_axisbelow(True)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set_size(FONT_SIZE)
    figure.patch.set_visible(False)
    return figure, list(axes)


def to_svg(
    figure: Figure, name: str, description: str, titles: Mapping[str, str] | None = None
) -> str:
    """Return the figure as an inline <svg>.

    Args:
      figure: a figure drawn with this module's colours.
      name: a name unique in the page; ids start with it.
      description: a text for readers who cannot see the figure.
      titles: gid of an artist -> what a pointer over it shows.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for ax in figure.axes:
        _plain_logarithms(ax)
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = _titled(text, name, titles or {})
    label, width = escape(description, quote=True), figure.get_figwidth() * 72
    style = f"min-width: {width:.0f}px; max-width: {width * _MOST_SCALED:.0f}px"
    return text.replace("<svg", f'<svg role="img" aria-label="{label}" style="{style}"', 1).strip()


def _plain_logarithms(ax: Axes) -> None:
    """Label logarithmic axes 100 instead of 10 to a small raised 2."""
    from matplotlib.ticker import FuncFormatter, LogFormatter

    for axis in (ax.xaxis, ax.yaxis):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        axis.set_tick_params(which="minor", labelsize=SMALL, length=0)


def _titled(text: str, name: str, titles: Mapping[str, str]) -> str:
    """Put a <title>, which a pointer shows, into each group whose artist has that gid."""
    for gid, title in titles.items():
        group = f'<g id="{name}-{gid}">'
        text = text.replace(group, f"{group}<title>{escape(title)}</title>", 1)
    return text


def as_file(svg: str) -> str:
    """Return an inline <svg> as a file of its own, with colours instead of CSS variables."""
    style = "; ".join(f"{name}: {colour}" for name, colour in _ON_WHITE.items())
    font = "font-family: system-ui, sans-serif; background: #ffffff"
    return (
        re.sub(r' style="min-width[^"]*"', f' style="{style}; {font}"', svg, count=1)
        .replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
        .replace("xlink:href", "href")
        + "\n"
    )
