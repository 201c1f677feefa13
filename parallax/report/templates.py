"""Jinja templates rendered to HTML: this folder's, and those of a page beside them."""

import re
from pathlib import Path
from typing import Any


def render(template: str, *folders: Path, **values: Any) -> str:
    """The text of a template, without blank lines. Every value that it names has to be given.

    Args:
      template: the file's name.
      folders: where templates are looked for first; then in `parallax/report`.
      values: what it shows; text is escaped.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return re.sub(r"\n\s*\n+", "\n", environment.get_template(template).render(values))
