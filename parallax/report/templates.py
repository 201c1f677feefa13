"""Rendering of Jinja templates to HTML, from this folder and from a page's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallax.results.lens_results import TAGS

if TYPE_CHECKING:
    from markupsafe import Markup

_UNITS = "[kMGTPE]?B|[kMGTPE]?FLOP|tokens/s|GPUs?|us|ms|ns|s|J|%"
_NUMBER = re.compile(rf"(?<![\w&#.,])\d[\d.,]*(e-?\d+|[kM]? ({_UNITS})(?![\w/]))")


def render(template: str, *folders: Path, **values: Any) -> str:
    """Render a template, without blank lines. Every value that it names has to be given.

    Args:
      template: the name of the template file.
      folders: folders searched for templates before `parallax/report`.
      values: the values that the template shows; text is escaped.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.globals["tags"] = TAGS
    environment.filters["unbroken"] = unbroken
    return re.sub(r"\n\s*\n+", "\n", environment.get_template(template).render(values))


def unbroken(text: str) -> Markup:
    """Escape a text and keep each number with its unit on one line: 3.1e-16, 9.81 GB."""
    from markupsafe import Markup, escape

    return Markup(_NUMBER.sub(r'<span class="n">\g<0></span>', str(escape(text))))


def render_page(template: str, *folders: Path, title: str, **values: Any) -> str:
    """Render a template that extends piece.html.j2 as a whole document, for a file.

    `render` gives the same piece with its style, for a notebook.
    """
    piece = render(template, *folders, title=title, **values)
    return render("page.html.j2", title=title, piece=piece)
