"""Explanations as a table, a page, a notebook's output and plain data."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType

from parallax.explanations.facts import Facts
from parallax.explanations.findings import Finding
from parallax.report.explanation_data import explanation_data
from parallax.report.explanation_page import explanation_page, explanation_piece
from parallax.report.explanation_table import explanation_parts
from parallax.report.files import save_files

WIDTH = 110


@dataclass(frozen=True, repr=False)
class Explanation:
    """What was found about a program, and its renderings.

    Attributes:
      facts: all that is known, as plain values.
    """

    facts: Facts

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What costs time or memory and what would help, most lost first."""
        return self.facts.findings

    @property
    def needed(self) -> tuple[Finding, ...]:
        """What is sent besides, each with its reason and closed form."""
        return self.facts.needed

    @property
    def notes(self) -> tuple[str, ...]:
        """What was not tried, and other caveats."""
        return self.facts.notes

    def table(self) -> RenderableType:
        """Render the explanation for a rich console of 110 columns."""
        return Group(*explanation_parts(self.facts))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; every number has its unit and tag."""
        return explanation_data(self.facts)

    def to_html(self) -> str:
        """Return one self-contained HTML page."""
        return explanation_page(self.facts)

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write report.html and explanation.json to a folder, and return their paths.

        Raises:
          ValueError: the folder cannot be written to; nothing is left behind.
        """
        record = json.dumps(self.to_dict(), indent=1) + "\n"
        return save_files(folder, {"explanation.json": record, "report.html": self.to_html()})

    def __str__(self) -> str:
        console = Console(width=WIDTH, file=io.StringIO())
        with console.capture() as text:
            console.print(self.table())
        return text.get()

    def __repr__(self) -> str:
        count = len(self.findings)
        return f"<Explanation of {self.facts.name}: {count} findings; .table(), .save(folder)>"

    def _repr_html_(self) -> str:
        return explanation_piece(self.facts)
