"""The report of a comparison: on a terminal, as JSON, and as one HTML file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

from parallax.report.comparison import Comparison
from parallax.report.files import save_files
from parallax.report.html import report_html, report_page
from parallax.report.serialize import report_to_dict
from parallax.report.table import report_table


@dataclass(frozen=True)
class Report(Comparison):
    """A `Comparison` that shows itself: on a terminal, as JSON, as one HTML file, in a notebook."""

    def table(self) -> RenderableType:
        """Render the report for a rich console of 100 columns or more."""
        return report_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that follows the schema in docs/report_schema.md."""
        return report_to_dict(self)

    def to_json(self) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def html(self) -> str:
        """Return one self-contained HTML page: no network, no script."""
        return report_page(self)

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write report.json and report.html, both or neither.

        Returns:
          The paths of both.

        Raises:
          ValueError: the folder cannot be written to.
        """
        files = {"report.json": self.to_json(), "report.html": self.html()}
        as_json, as_html = save_files(folder, files)
        return as_json, as_html

    def _repr_html_(self) -> str:
        return report_html(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()
