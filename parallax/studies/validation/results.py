"""What a validation found: judged rows by table and figure, as tables, a page, plots and files."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from parallax.report.facts import Cell
from parallax.report.files import save_files
from parallax.report.grid import DataTable, Heads, grid_html, grid_markdown, grid_table
from parallax.report.svg import as_file
from parallax.report.templates import render_page
from parallax.studies.validation.plot import section_plot
from parallax.studies.validation.scores import Judged, Score, score

TITLE = "How far off the predictions are"
LEAST_SHOWN = 5  # rows of a regime with a line of its own
_WORST = 5
_HEADS: Heads = (
    ("rows", None), ("n", "measured"), ("median", "modelled"), ("p90", "modelled"),
    ("mean", "modelled"), ("worst", "modelled"), ("bias", "modelled"), ("in bar", "modelled"),
    ("tau", "modelled"), ("regret", "modelled"), ("per log TP", "modelled"),
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """The judged rows of one table and one figure.

    Attributes:
      title: what they are, such as "training steps, nanotron_h100_grid".
      held_out: how they were kept out of what they are judged by.
      rows: the rows, with bars.
      lines: what to know about them.
    """

    title: str
    held_out: str
    rows: tuple[Judged, ...]
    lines: tuple[str, ...] = ()

    def scores(self) -> Iterator[tuple[str, Score]]:
        """Yield the score of all rows, then of each regime that has enough of them."""
        yield "all", score(self.rows)
        regimes = dict.fromkeys(row.regime for row in self.rows)
        for regime in regimes if len(regimes) > 1 else ():
            rows = [row for row in self.rows if row.regime == regime]
            if len(rows) >= LEAST_SHOWN:
                yield regime, score(rows)

    def grid(self) -> DataTable:
        """Return the scores as a table."""
        rows = tuple((Cell(name), *_cells(found)) for name, found in self.scores())
        return DataTable(f"{self.title}: {self.held_out}", _HEADS, rows, self.lines)

    def worst(self) -> DataTable:
        """Return the rows that are furthest off, as a table."""
        rows = sorted(self.rows, key=lambda row: -abs(row.log_ratio))[:_WORST]
        heads: Heads = (("row", None), ("measured", "measured"), ("predicted", "modelled"),
                        ("ratio", "modelled"))  # fmt: skip
        cells = tuple(
            (Cell(r.label), Cell(_quantity(r.measured, r.figure)),
             Cell(_quantity(r.modelled, r.figure)), Cell(f"{r.modelled / r.measured:.2f}"))
            for r in rows
        )  # fmt: skip
        return DataTable(f"Furthest off: {self.title}", heads, cells)


@dataclass(frozen=True)
class Validation:
    """A validation to print, show and save.

    Attributes:
      sections: a section for each table and figure.
      notes: what holds for all of them.
      shows_worst: whether the rows furthest off are listed.
    """

    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    shows_worst: bool = False

    def table(self) -> RenderableType:
        """Render the validation for a rich console of 120 columns."""
        parts: list[RenderableType] = [Text(TITLE, style="bold"), Text()]
        for grid in self._grids():
            parts += [grid_table(grid), Text()]
        return Group(*parts, *(Text(line, style="dim") for line in (*_READ, *self.notes)))

    def markdown(self) -> str:
        """Render the validation as a Markdown page."""
        lines = [f"# {TITLE}", "", *(f"- {line}" for line in (*_READ, *self.notes)), ""]
        lines += [grid_markdown(grid) for grid in self._grids()]
        return "\n".join(lines).rstrip() + "\n"

    def to_dict(self) -> dict:
        """Return plain data: every judged row, and the scores."""
        return {
            "validation_version": 1,
            "sections": [
                {"title": s.title, "held_out": s.held_out,
                 "scores": {name: asdict(found) for name, found in s.scores()},
                 "rows": [asdict(row) for row in s.rows]} for s in self.sections
            ],
        }  # fmt: skip

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Save validation.json, .md and .html, and a plot per section as .svg."""
        return save_files(folder, {
            "validation.json": json.dumps(self.to_dict(), indent=1) + "\n",
            "validation.md": self.markdown(), "validation.html": self.page(),
            **{f"validation_{n}.svg": as_file(plot) for n, plot in enumerate(self._plots(), 1)},
        })  # fmt: skip

    def page(self) -> str:
        """Render the validation as one self-contained HTML page."""
        return render_page(
            "validation.html.j2", Path(__file__).parent, title=TITLE, answer=self.answer,
            notes=(*_READ, *self.notes),
            sections=[(grid_html(s.grid()), plot, grid_html(s.worst()) if self.shows_worst else "")
                      for s, plot in zip(self.sections, self._plots(), strict=True)],
        )  # fmt: skip

    @property
    def answer(self) -> str:
        """How far off the predictions are, in a sentence."""
        found = [(s.title, next(s.scores())[1]) for s in self.sections]
        return "; ".join(
            f"{title}: half of the {score.n:,} predictions are within {_percent(score.median)}"
            for title, score in found
        ) + "."  # fmt: skip

    def _plots(self) -> list[str]:
        return [section_plot(s.title, s.rows, f"validation_{n}")
                for n, s in enumerate(self.sections, 1)]  # fmt: skip

    def _grids(self) -> Iterator[DataTable]:
        for section in self.sections:
            yield section.grid()
            if self.shows_worst:
                yield section.worst()


def _cells(found: Score) -> tuple[Cell, ...]:
    percent = (_percent(x) for x in (found.median, found.p90, found.mean, found.worst))
    return (
        Cell(f"{found.n:,}"), *(Cell(text) for text in percent),
        Cell(f"{100 * found.bias:+.1f} %"), Cell(_percent(found.coverage, 0)),
        Cell(_plain(found.tau)), Cell(_percent(found.regret)), Cell(_plain(found.trend, "+")),
    )  # fmt: skip


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _plain(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.2f}"


def _quantity(value: float, figure: str) -> str:
    return f"{value / 1e9:.1f} GB" if figure == "memory" else f"{1e3 * value:.4g} ms"


_READ = (
    "Errors are |modelled / measured - 1|; the bias is their median with its sign.",
    "Held out: the rows of a fold are predicted with constants fitted to the other four.",
    "In bar: share of measured figures inside the 80 % bar, which comes from the residuals of the "
    "other folds' rows of the regime.",
    "tau: Kendall's, of the order within groups that compete: one model on one cluster, layouts "
    "that are predicted to fit. Regret: how much slower the first choice of a group was than its "
    "fastest.",
    "Per log TP: slope of log(modelled / measured) over log(tensor degree); 0 has no trend.",
)
