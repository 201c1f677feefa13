"""Renderings of a study of regimes: a table, a page, Markdown and files."""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from parallax.codec import read_json
from parallax.report.facts import Cell
from parallax.report.files import save_files
from parallax.report.grid import DataTable as Table
from parallax.report.grid import Heads, grid_html, grid_markdown, grid_table
from parallax.report.svg import as_file
from parallax.report.templates import render_page
from parallax.studies.regimes.conclusions import conclusions
from parallax.studies.regimes.places import BASELINE, LAYERWISE, NAMES, Grid, Place, wins
from parallax.studies.regimes.plot import LABELS, baseline_plot, winner_plot
from parallax.studies.regimes.record import from_record, to_record

TITLE = "Where layer-wise deployment wins, and where not"
_UNPACKED = {"": "", "xla": " (XLA)", "kernel": " (kernel, assumed)"}


@dataclass(frozen=True)
class RegimesReport:
    """A study to print, show and save.

    Attributes:
      grid, places: the grid, and the result at each place.
      made: command and date of a record; empty for a new run.
    """

    grid: Grid
    places: tuple[Place, ...]
    made: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> RenderableType:
        """Render the report for a rich console of 110 columns."""
        parts: list[RenderableType] = [Text(TITLE, style="bold"), Text(self.asked), Text()]
        for grid in self._tables():
            parts += [grid_table(grid), Text()]
        parts += [Text("What the data says (modelled)", style="bold")]
        parts += [Padding(Text(f"- {line}"), (0, 0, 0, 1)) for line in conclusions(self.places)]
        parts += [Text(), *(Text(line, style="dim") for line in NOTES)]
        return Group(*parts)

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Save regimes.json, .md, .html, and two plots as .svg."""
        record = {**self.made, **to_record(self.grid, self.places)}
        return save_files(folder, {
            "regimes.json": json.dumps(record) + "\n",
            "regimes.md": self.markdown(), "regimes.html": self.page(),
            "regimes.svg": as_file(winner_plot(self.places, "winners")),
            "regimes_baseline.svg": as_file(baseline_plot(self.places, "baseline")),
        })  # fmt: skip

    def markdown(self) -> str:
        """Render the page docs/generated/regimes.md."""
        lines = [f"# {TITLE}", "", self.asked, ""]
        if self.made:
            lines += [_HEAD.format(**self.made), ""]
        lines += ["![Fastest strategy, place by place](regimes.svg)", "",
                  "![Layer-wise against TP x PP](regimes_baseline.svg)", "",
                  "## What the data says", ""]  # fmt: skip
        lines += [f"- {line}" for line in conclusions(self.places)]
        lines += ["", *(grid_markdown(grid) for grid in self._tables()), "## How to read it", ""]
        lines += [f"- {line}" for line in NOTES]
        return "\n".join(lines) + "\n"

    @property
    def asked(self) -> str:
        """The grid in one sentence."""
        g = self.grid
        clusters, phases, attentions = (
            " and ".join(x) for x in (g.clusters, g.phases, g.attentions)
        )
        return (
            f"{len(self.places):,} places: {phases}; batch {_list(g.batches)}; width "
            f"{_list(g.widths)}; {_list(g.depths)} layers; {attentions}; weights in "
            f"{'; '.join(g.stored)}; {g.seq_len:,} tokens per sequence; on {clusters}. Each "
            "strategy at the best of up to five numbers of microbatches, TP x PP as 8 x 2; by the "
            "analytical model."
        )

    def _tables(self) -> tuple[Table, ...]:
        return (
            _counts(self.places, "storage", "By phase, depth and storage",
                    lambda p: (p.phase, f"{p.depth}", p.stored + _UNPACKED[p.unpacking])),
            _crossed(self.places),
        )  # fmt: skip

    def page(self) -> str:
        """Render the study as one self-contained HTML page."""
        answer, *lines = conclusions(self.places)
        return render_page(
            "regimes.html.j2", Path(__file__).parent,
            title=TITLE, answer=answer, asked=self.asked, lines=lines, notes=NOTES,
            plots=[("Fastest strategy", winner_plot(self.places, "winners")),
                   ("Layer-wise against TP x PP", baseline_plot(self.places, "baseline"))],
            tables=[grid_html(grid) for grid in self._tables()],
        )  # fmt: skip


NOTES = (
    "modelled: synthetic traces whose cost is estimated by the cost model, which is fitted to "
    "published figures (docs/generated/accuracy.md); no published measurement validates time "
    "between nodes.",
    "Weights that the cost model finds in the L2 cache from the tick before are read from there, "
    "for every strategy alike.",
    "Packed weights are unpacked as XLA does it (read packed, written dense, read dense), or by a "
    "kernel that unpacks in registers: that kernel is assumed to keep the library's rate.",
    "A decoding step begins and ends with an empty pipeline, as in Parallax's programs; S stages "
    "and M microbatches take M + S - 1 ticks; a sentence above says what full pipelines would do.",
    "Data parallelism takes as many devices as there are sequences, up to all.",
)
_HEAD = (
    "Made on {date} by `{command}`; the record is `benchmarks/cpu/regimes.json`. Written from it "
    "by `python -m parallax.studies.regimes.page benchmarks/cpu/regimes.json docs/generated`; "
    "a test holds them equal."
)


def load(path: str | Path) -> RegimesReport:
    """Load a report from its regimes.json.

    Raises:
      ValueError: a missing file, or one of another version.
    """
    data = read_json(path, f"regimes record {path}", "Run parallax regimes again.")
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected an object, got {type(data).__name__}.")
    made = {key: data[key] for key in ("date", "command") if key in data}
    return RegimesReport(*from_record(data), made)


def _counts(places: Sequence[Place], what: str, title: str, key) -> Table:
    groups: dict[tuple[str, ...], list[Place]] = {}
    for p in places:
        groups.setdefault(key(p), []).append(p)
    heads: Heads = (("phase", None), ("layers", None), (what, None), ("places", None),
             *((f"{LABELS[n]} first", "modelled") for n in NAMES), ("nothing fits", "modelled"),
             ("ahead of TP x PP", "modelled"), ("speed, median", "modelled"))  # fmt: skip
    return Table(title, heads, tuple(_count(names, group) for names, group in groups.items()))


def _count(names: tuple[str, ...], places: Sequence[Place]) -> tuple[Cell, ...]:
    leads = [x for p in places if (x := p.lead_over(BASELINE)) is not None]
    first = [len(wins(places, n)) for n in NAMES]
    nothing = sum(not p.winner for p in places)
    return (
        *map(Cell, names), Cell(f"{len(places)}"),
        Cell(f"{first[0]}", "good" if first[0] else "plain"), *(Cell(f"{n}") for n in first[1:]),
        Cell(f"{nothing}"), Cell(f"{sum(x > 1 for x in leads)} of {len(leads)}"),
        Cell(f"{statistics.median(leads):.2f}x" if leads else "-"),
    )  # fmt: skip


def _crossed(places: Sequence[Place]) -> Table:
    """Tabulate layer-wise's speed over the baseline's, batch against width."""
    widths = sorted({p.width for p in places})
    rows = []
    for phase in dict.fromkeys(p.phase for p in places):
        for batch in sorted({p.batch for p in places}):
            cells = [Cell(phase), Cell(f"{batch:,}")]
            for width in widths:
                leads = [x for p in places if (p.phase, p.batch, p.width) == (phase, batch, width)
                         if (x := p.lead_over(BASELINE)) is not None]  # fmt: skip
                middle = statistics.median(leads) if leads else None
                ahead = middle is not None and middle > 1
                cells.append(Cell("-" if middle is None else f"{middle:.2f}x",
                                  "good" if ahead else "plain"))  # fmt: skip
            rows.append(tuple(cells))
    heads: Heads = (
        ("phase", None),
        ("batch", None),
        *((f"width {w:,}", "modelled") for w in widths),
    )
    return Table(f"Speed of {LABELS[LAYERWISE]} over TP x PP, median of all places", heads,
                 tuple(rows))  # fmt: skip


def _list(values: Sequence[int]) -> str:
    return ", ".join(f"{v:,}" for v in values)


if __name__ == "__main__":
    report = load(sys.argv[1])
    folder = Path(sys.argv[2])
    (folder / "regimes.md").write_text(report.markdown(), encoding="utf-8")
    for name, plot in (("regimes", winner_plot), ("regimes_baseline", baseline_plot)):
        svg = as_file(plot(report.places, name))
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
