"""An explanation on a terminal of 110 columns."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table, box
from rich.text import Text

from parallax.explanations.facts import ArraySplit, Facts
from parallax.explanations.source_lines import SourceLine
from parallax.report import words
from parallax.report.explanation_words import (
    copies_of,
    decided_by,
    dims_of,
    headline,
    needed_words,
    nothing_found,
    place,
    saving_lines,
    split_of,
)

MOST_ROWS = 10


def explanation_parts(facts: Facts) -> Iterator[RenderableType]:
    """Yield the parts of an explanation for a rich console, from top to bottom."""
    yield Text(headline(facts), style="bold")
    yield Text()
    if facts.findings:
        yield _findings(facts)
    else:
        yield Text(nothing_found(facts), style="" if facts.untried else "green")
    yield from _needed(facts)
    yield from _buffers(facts)
    yield from _flops(facts)
    for name, splits in (("arguments", facts.arguments), ("results", facts.results)):
        yield from _splits(name, splits, facts)
    if facts.unvalidated or facts.notes:
        yield Text()
    if facts.unvalidated:
        yield Text(f"unvalidated: no measurement stands behind the {facts.unvalidated}", "dim")
    for note in facts.notes:
        yield Text(note, style="yellow")


def _findings(facts: Facts) -> Table:
    table = _table({"findings, most lost first": 30, "what, and how to mend it": None, "saves": 32})
    for finding in facts.findings:
        what = Text.assemble((finding.kind, "bold"), f": {finding.what}")
        if finding.fix:
            what.append("\n-> ", style="green").append(finding.fix)
        table.add_row(
            _place(finding.line, finding.argument), what, "\n".join(saving_lines(finding, facts))
        )
        table.add_row()
    return table


def _needed(facts: Facts) -> Iterator[RenderableType]:
    if not facts.needed:
        return
    table = _table(
        {"needed, by line": 28, "what is sent, and its closed form": None},
        ("times", "sent\ncompiled", "time\nmodelled", "exposed\nmodelled"),
    )
    for finding in facts.needed[:MOST_ROWS]:
        table.add_row(
            _place(finding.line, finding.argument), needed_words(finding),
            f"{finding.count:,.6g}", words.in_bytes(finding.sent_bytes),
            words.in_seconds(finding.seconds), words.in_seconds(finding.exposed_s),
        )  # fmt: skip
    yield table
    yield from _more(len(facts.needed))


def _buffers(facts: Facts) -> Iterator[RenderableType]:
    if not facts.buffers:
        return
    yield Text()
    heads = {"largest temporary arrays at the peak": 50, "made by": None}
    table = _table(heads, ("per device\ncompiled",))
    for buffer in facts.buffers:
        table.add_row(
            _place(buffer.line),
            f"{buffer.what or '-'} ({buffer.dtype})",
            words.in_bytes(buffer.n_bytes),
        )
    yield table


def _flops(facts: Facts) -> Iterator[RenderableType]:
    if not facts.flops:
        return
    yield Text()
    numbers = ("per device\ncompiled", "whole / devices\nderived", "times")
    table = _table({"FLOPs of products, by line": 50}, numbers)
    for row in facts.flops[:MOST_ROWS]:
        ratio = row.flops / row.needed if row.needed else None
        table.add_row(
            _place(row.line),
            words.in_flops(row.flops),
            "-" if row.needed is None else words.in_flops(row.needed),
            Text("-") if ratio is None else Text(words.ratio(ratio), "red" if ratio > 1.05 else ""),
        )
    yield table
    yield from _more(len(facts.flops))


def _splits(name: str, splits: Sequence[ArraySplit], facts: Facts) -> Iterator[RenderableType]:
    if not splits:
        return
    yield Text()
    heads = {f"{name} as compiled, largest first": 34, "array": None, "split": None, "": None}
    table = _table(heads, ("copies", "per device\ncompiled"))
    for split in sorted(splits, key=lambda s: -s.n_bytes)[:MOST_ROWS]:
        table.add_row(
            split.name, dims_of(split), split_of(split), decided_by(split),
            copies_of(split, facts), words.in_bytes(split.n_bytes),
        )  # fmt: skip
    yield table
    yield from _more(len(splits))


def _table(texts: Mapping[str, int | None], numbers: Sequence[str] = ()) -> Table:
    """Make a table with columns of text, each with its largest width, and then of numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for head, width in texts.items():
        table.add_column(head, max_width=width, overflow="fold")
    for head in numbers:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _place(line: SourceLine | None, argument: str = "") -> Text:
    where, code = place(line, argument)
    found = Text(where, style="bold")
    return found.append(f"\n{code}", style="not bold dim") if code else found


def _more(count: int) -> Iterator[RenderableType]:
    if count > MOST_ROWS:
        yield Text(f"and {count - MOST_ROWS} more in explanation.json", style="dim")
