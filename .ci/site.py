"""Hooks of mkdocs for the documentation site."""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

_ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)([^)\s]*)\)")
_copy = tempfile.TemporaryDirectory()


@event_priority(100)  # before mkdocstrings
def on_config(config: Any) -> Any:
    """Read docstrings from a copy of the package whose linked folders are packages.

    The tool that reads them follows no links, and passes over folders without `__init__.py`.
    """
    skipped = shutil.ignore_patterns("*.json*", "*.csv", "*.txtpb", "__pycache__")
    copy = Path(shutil.copytree(_ROOT / "parallax", f"{_copy.name}/parallax", ignore=skipped))
    for folder in (path for path in copy.rglob("*") if path.is_dir()):
        (folder / "__init__.py").touch()
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_copy.name]
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Leave the text alone of links out of docs/: the site does not have these files."""
    depth = page.file.src_uri.count("/")

    def replaced(link: re.Match[str]) -> str:
        text, up, _ = link.groups()
        return text if len(up) // 3 > depth else link.group()

    return _LINK.sub(replaced, markdown)
