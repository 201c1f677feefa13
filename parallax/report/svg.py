"""Matplotlib figures as SVG for a page: the page's fonts and colours, no outside reference."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours drawn with, and the page's CSS variables that replace them.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#010001", "#010002", "#010003", "#010004")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    **{colour: f"var(--s{i})" for i, colour in enumerate(SERIES, start=1)},
}
_ON_WHITE = {
    "--ink": "#1c1f23", "--muted": "#62676e", "--line": "#e3e0da", "--s1": "#3a6db0",
    "--s2": "#d9822b", "--s3": "#8fb4d9", "--s4": "#b9b4a8",
}  # fmt: skip
FONT_SIZE = 9.5


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
    figure.patch.set_visible(False)
    return figure, list(axes)


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as an inline <svg>.

    Args:
      figure: a figure drawn with this module's colours.
      name: a name unique in the page; ids start with it.
      description: a text for readers who cannot see the figure.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

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
    label = escape(description, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def as_file(svg: str) -> str:
    """Return an inline <svg> as a file of its own, with colours instead of CSS variables."""
    style = "; ".join(f"{name}: {colour}" for name, colour in _ON_WHITE.items())
    font = "font-family: system-ui, sans-serif; background: #ffffff"
    return (
        svg.replace(
            "<svg", f'<svg xmlns="http://www.w3.org/2000/svg" style="{style}; {font}"', 1
        ).replace("xlink:href", "href")
        + "\n"
    )
