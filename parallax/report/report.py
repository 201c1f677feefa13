"""The report: everything a comparison found, on a terminal, as JSON and as one HTML file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

from parallax.models.config import ModelConfig
from parallax.papers.paper import Paper
from parallax.report.files import save_files
from parallax.report.html import report_html, report_page
from parallax.report.serialize import report_to_dict
from parallax.report.table import report_table
from parallax.results import StrategyResult
from parallax.workload import Workload


@dataclass(frozen=True)
class Report:
    """Strategies compared through the lenses.

    Attributes:
      config, workload: compiled and predicted; each compilation has its own microbatches.
      cluster: name of the cluster compiled for.
      lenses: that were asked for.
      request: the resolved flags that run it again.
      results: one a strategy, in the order asked for.
      versions: of what took part, e.g. {"jax": "0.12.0"}.
      seconds: the whole run took.
      paper: whose experiment it is; None for a free comparison.
    """

    config: ModelConfig
    workload: Workload
    cluster: str
    lenses: tuple[str, ...]
    request: Mapping[str, Any]
    results: tuple[StrategyResult, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    paper: Paper | None = None

    @property
    def failed(self) -> bool:
        """A strategy is not exact, does not fit, or moves other bytes than its closed form."""
        return any(result.failed for result in self.results)

    @property
    def exit_status(self) -> int:
        """0, or 1 if `failed`. The paper's own validation points do not count."""
        return int(self.failed)

    def table(self) -> RenderableType:
        """For a rich console; reads well at 100 columns."""
        return report_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain data by the schema in docs/report_schema.md."""
        return report_to_dict(self)

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def html(self) -> str:
        """One self-contained page: no network, no script."""
        return report_page(self)

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Writes report.json and report.html, both or neither.

        Returns:
          Their paths.

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
