"""The report on a terminal, made for 100 columns."""

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parallax.report import rows
from parallax.report.rows import Row
from parallax.results import TAGS

_STYLES = {"ok": "green", "bad": "bold red", "plain": ""}


def render(report) -> RenderableType:
    """Everything a report says, top to bottom: answers, sentences, details."""
    parts: list[RenderableType] = [Text(report.title, style="bold"), Text(report.subtitle), Text()]
    names = [r.name for r in report.results]
    first = rows.answers(report.results, report.paper)
    parts.append(_table(["", *names, "tag"], first, show_tag=True))
    parts += [Text(f"- {line}") for line in report.sentences]
    for result in report.results:
        parts += [Text(), Text(f"{result.name}: {result.description}", style="bold")]
        if result.compilation is not None:
            c = result.compilation
            parts.append(Text(f"partitioned by {c.partitioner}; {c.workload.microbatches} microbatches"))
            if c.transfers:
                parts.append(Text("closed form (derived)", style="italic"))
                parts.append(_table(rows.TRANSFER_COLUMNS, rows.transfer_rows(c)))
            if c.collectives:
                parts.append(Text("ledger of the CUDA program (compiled)", style="italic"))
                parts.append(_table(rows.LEDGER_COLUMNS, rows.ledger_rows(c)))
            parts += [Text(f"closed form differs: {d}", style="bold red") for d in c.differences]
            parts += [Text(f"note: {note}") for note in c.notes]
        if result.verification is not None:
            parts.append(Text("against the unsharded model, relative L2 (measured)", style="italic"))
            parts.append(_table(rows.EXACTNESS_COLUMNS, rows.exactness_rows(result.verification)))
        parts += [Text(f"{lens} not run: {why}") for lens, why in result.skipped.items()]
    if report.decisions:
        parts += [Text(), Text("The paper's own validation points", style="bold")]
        parts += [Text(f"- {d.verdict}: {d.statement} ({d.because})") for d in report.decisions]
    if report.paper is not None and report.paper.assumptions:
        parts += [Text(), Text("Assumed, as the paper does not say", style="bold")]
        parts += [Text(f"- {a.name} = {a.value}: {a.reason}") for a in report.paper.assumptions]
    legend = "; ".join(f"{tag}: {meaning}" for tag, meaning in TAGS.items())
    parts += [Text(), Text(legend, style="dim")]
    return Group(*parts)


def _table(columns: Sequence[str], lines: Iterable[Row], show_tag: bool = False) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column))
    for line in lines:
        status = line.status or ("plain",)
        cells = [
            Text(text, style=_STYLES[status[min(i, len(status) - 1)]])
            for i, (text, _) in enumerate(line.cells)
        ]
        if show_tag:
            cells.append(Text(line.tag, style="dim"))
        table.add_row(Text(line.label), *cells)
    return table
