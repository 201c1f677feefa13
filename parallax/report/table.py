"""The report on a terminal, made for 100 columns."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parallax.report import rows
from parallax.report.rows import Cell, Row
from parallax.results import TAGS

_STYLES = {"ok": "green", "bad": "bold red", "plain": ""}


def render(report) -> RenderableType:
    """Everything a report says, top to bottom: answers, sentences, details."""
    parts: list[RenderableType] = [Text(report.title, style="bold"), Text(report.subtitle), Text()]
    names = [r.name for r in report.results]
    parts.append(_table(["", *names], rows.answers(report.results, report.paper)))
    parts += [Text(f"- {line}") for line in report.sentences]
    for result in report.results:
        parts += [Text(), Text(f"{result.name}: {result.description}", style="bold")]
        if result.compilation is not None:
            c = result.compilation
            parts.append(Text(f"partitioned by {c.partitioner}; {c.workload.microbatches} microbatches"))
            if c.transfers:
                parts.append(_table(rows.TRANSFER_COLUMNS, rows.transfer_rows(c)))
            if c.collectives:
                parts.append(_table(rows.LEDGER_COLUMNS, rows.ledger_rows(c)))
            parts += [Text(f"closed form differs: {d}", style="bold red") for d in c.differences]
            parts += [Text(f"note: {note}") for note in c.notes]
        if result.verification is not None:
            parts.append(_table(rows.EXACTNESS_COLUMNS, rows.exactness_rows(result.verification)))
        parts += [Text(f"{lens} not run: {why}") for lens, why in result.skipped.items()]
    if report.decisions:
        parts += [Text(), Text("The paper's own validation points", style="bold")]
        parts += [Text(f"- {d.verdict}: {d.statement} ({d.because})") for d in report.decisions]
    if report.paper is not None and report.paper.assumptions:
        parts += [Text(), Text("Assumed, as the paper does not say", style="bold")]
        parts += [Text(f"- {a.name} = {a.value}: {a.reason}") for a in report.paper.assumptions]
    parts += [Text(), Text("; ".join(f"[{t[:2]}] {t}: {m}" for t, m in TAGS.items()), style="dim")]
    return Group(*parts)


def _table(columns: Sequence[str], lines: Iterable[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column))
    for line in lines:
        status = line.status or ("plain",)
        cells = [
            _cell(cell, status[min(i, len(status) - 1)]) for i, cell in enumerate(line.cells)
        ]
        table.add_row(Text(line.label), *cells)
    return table


def _cell(cell: Cell, status: str) -> Text:
    text, tag = cell
    out = Text(text, style=_STYLES[status])
    if tag:
        out.append(f" [{tag[:2]}]", style="dim")
    return out
