"""Sections of a report: tables and sentences, and those that records of long runs became."""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from parallax.report.facts import Cell
from parallax.report.grid import DataTable


@dataclass(frozen=True)
class Section:
    """One section of a report, about one subject.

    Attributes:
      title: the section's heading.
      said: what its tables show, in sentences.
      grids: its tables, shown on the page.
      in_short: the tables that a terminal shows too.
    """

    title: str
    said: tuple[str, ...]
    grids: tuple[DataTable, ...]
    in_short: tuple[DataTable, ...] = ()


def section_to_dict(section: Section) -> dict[str, Any]:
    """Return a section as plain data; cells are text, their numbers have the column's tag."""
    return {
        "title": section.title,
        "said": list(section.said),
        "tables": [
            {
                "title": grid.title,
                "columns": [{"name": n, "unit": None, "tag": tag} for n, tag in grid.heads],
                "rows": [[cell.text for cell in row] for row in grid.rows],
                "lines": list(grid.lines),
                "in_short": grid in section.in_short,
            }
            for grid in section.grids
        ],
    }


def section_from_dict(data: dict[str, Any]) -> Section:
    """Read back what `section_to_dict` wrote; colours are lost."""
    grids = tuple(
        DataTable(
            t["title"],
            tuple((c["name"], c["tag"]) for c in t["columns"]),
            tuple(tuple(Cell(text) for text in row) for row in t["rows"]),
            tuple(t["lines"]),
        )
        for t in data["tables"]
    )
    short = tuple(g for g, t in zip(grids, data["tables"], strict=True) if t["in_short"])
    return Section(data["title"], tuple(data["said"]), grids, short)


def recorded_sections(paper: str) -> tuple[Section, ...]:
    """Return the sections that `parallax.studies.recording` wrote about a paper, if any."""
    text = (resources.files("parallax.report") / "recorded.json").read_text(encoding="utf-8")
    return tuple(section_from_dict(data) for data in json.loads(text).get(paper, ()))
