"""Rendering of Jinja templates to HTML, from this folder and from a page's own."""

import re
from pathlib import Path
from typing import Any


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
    return re.sub(r"\n\s*\n+", "\n", environment.get_template(template).render(values))
