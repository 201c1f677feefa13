"""The claims audit on a terminal, as Markdown and as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table, box
from rich.text import Text

from parallax.codec import number
from parallax.papers.paper import Paper
from parallax.papers.results import VERDICTS, Audited
from parallax.report.audit import HEADS, audit_rows, counts, counts_line
from parallax.report.facts import Cell
from parallax.report.grid import DataTable, Heads, grid_html
from parallax.report.templates import render_page
from parallax.report.words import markdown_row

_STYLES = {"good": "green", "bad": "bold red", "none": "yellow"}
# Widths of columns; the reason takes the rest of 100 columns or more.
_WIDTHS = {"line": 5, "figure": 19, "claimed": 10, "derived": 13, "verdict": 14}

_LEGEND = (
    "claimed: as printed. derived: by closed form, from the paper's own setup and figures; for a "
    "TPS, the most that peak rates allow. line: in the paper's text."
)

_HEAD = """# Claims audit

Every figure of the five papers, held against what it comes to. Written from the data in
`parallax/papers/` by `parallax claims --out=out` (out/claims.md), which prints it too; a test holds
them equal. `parallax claims --help` says what the verdicts mean.

A throughput is held against what peak rates allow, against what other papers print, and, where it
is possible, against the cost model's closed form (modelled, 80 % error bars;
[accuracy.md](accuracy.md)).
"""


def audit_table(
    audits: Mapping[str, Sequence[Audited]], papers: Mapping[str, Paper]
) -> RenderableType:
    """Render a table per paper, then the counts, for a terminal of 100 columns.

    Args:
      audits: name of a paper -> its audited figures.
      papers: by the same names.
    """
    blocks: list[RenderableType] = []
    for name, audited in audits.items():
        blocks += [Text(f"{name}: {papers[name].title}", style="bold"), _table(audited), Text()]
    blocks.append(Text(_LEGEND, style="dim"))
    if len(audits) > 1:
        blocks += [Text(), _counts(audits)]
    else:
        blocks += [Text(f"{counts_line(a)}.", style="bold") for a in audits.values()]
    return Group(*blocks)


def audit_markdown(audits: Mapping[str, Sequence[Audited]], papers: Mapping[str, Paper]) -> str:
    """Render the page of all papers: counts first, then each paper's table."""
    lines = [_HEAD, markdown_row("verdict", *(f"`{n}`" for n in audits))]
    lines.append("|---|" + "---:|" * len(audits))
    for verdict in VERDICTS:
        each = [str(counts(audited)[verdict]) for audited in audits.values()]
        lines.append(markdown_row(verdict, *each))
    each = [str(len(audited)) for audited in audits.values()]
    lines.append(markdown_row("**figures**", *each))
    for name, audited in audits.items():
        lines += [f"\n## `{name}`\n", f"{papers[name].title}; on {papers[name].cluster}.\n"]
        lines += [markdown_row(*HEADS), "|" + "---|" * len(HEADS)]
        for row in audit_rows(audited):
            reason = "<br>".join((row.reason, *row.more))
            cells = (row.lines, row.figure, row.claimed, row.derived, row.verdict, reason)
            lines.append(markdown_row(*cells))
    return "\n".join(lines) + "\n"


def audit_page(audits: Mapping[str, Sequence[Audited]], papers: Mapping[str, Paper]) -> str:
    """Render the audit as one self-contained HTML page: counts first, then each paper's table."""
    each = {name: counts(audited) for name, audited in audits.items()}
    rows = tuple(
        (Cell(verdict), *(Cell(f"{of[verdict]}") for of in each.values())) for verdict in VERDICTS
    )
    heads: Heads = (("verdict", None), *((name, "derived") for name in audits))
    return render_page(
        "claims.html.j2", Path(__file__).parent,
        title="Claims audit", answer=audit_answer(audits), legend=_LEGEND, audit_heads=HEADS,
        counts=grid_html(DataTable("Verdicts by paper", heads, rows)),
        papers=[(name, papers[name].title, papers[name].cluster, audit_rows(audited))
                for name, audited in audits.items()],
    )  # fmt: skip


def audit_answer(audits: Mapping[str, Sequence[Audited]]) -> str:
    """Return in a sentence how many figures hold, and what is wrong with the others."""
    every = [a for audited in audits.values() for a in audited]
    found = counts(every)
    agree = found["consistent"] + found["rounding"]
    others = ", ".join(f"{verdict} {n}" for verdict, n in found.items()
                       if n and verdict not in ("consistent", "rounding"))  # fmt: skip
    papers = "one paper" if len(audits) == 1 else f"{len(audits)} papers"
    start = f"Of {len(every)} figures of {papers}, {agree} agree with what they come to."
    return f"{start} The others: {others}." if others else start


def audit_json(audited: Sequence[Audited]) -> list[dict[str, Any]]:
    """Return plain data, one entry per figure; every number has its unit and tag."""
    return [_entry(a) for a in audited]


def _entry(a: Audited) -> dict[str, Any]:
    claim = a.claim
    return {
        "strategy": claim.strategy,
        "quantity": claim.quantity,
        "lines": list(claim.lines),
        "printed": claim.printed,
        "claimed": number(claim.value, claim.unit, "claimed"),
        "reading": claim.reading,
        "derivation": None if claim.derive is None else claim.derive.__name__,
        "relation": "at most" if a.tps else claim.relation,
        "derived": None if a.derived is None else number(a.derived, claim.unit, "derived"),
        "implied": None if a.implied is None else number(a.implied, "tokens/s", "derived"),
        "off_by": None if a.off_by is None else number(a.off_by, "1", "derived"),
        "verdict": a.verdict,
        "reason": claim.reason,
        "tps_readings": [
            {
                "reading": r.limit.reading,
                "limit": number(r.limit.tokens_per_s, "tokens/s", "derived"),
                "set_by": r.limit.set_by,
                "terms": {k: number(v, "s", "derived") for k, v in r.limit.terms_s.items()},
                "held": number(r.limit.held_bytes, "B", "derived"),
                "room": number(r.limit.room_bytes, "B", "derived"),
                "beyond": r.beyond,
                "modelled": None if r.modelled is None else number(
                    r.modelled.value, "tokens/s", "modelled"
                ) | {"low": r.modelled.low, "high": r.modelled.high},
            }
            for r in a.tps
        ],
        "tpot_readings": [
            {"reading": r.name, "says": r.says, "possible": r.possible,
             "value": number(r.value, "ms", "derived")}
            for r in a.tpot
        ],
        "elsewhere": a.elsewhere,
    }  # fmt: skip


def _table(audited: Sequence[Audited]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for head in HEADS:
        width = _WIDTHS.get(head)
        table.add_column(head, width=width, overflow="fold", ratio=None if width else 1)
    for row in audit_rows(audited):
        reason = Text(row.reason)
        for line in row.more:
            reason.append(f"\n{line}", style="dim")
        table.add_row(
            row.lines, Text(row.figure.replace(": ", ":\n", 1)), Text(row.claimed),
            Text(row.derived), Text(row.verdict, style=_STYLES[row.status]), reason,
        )  # fmt: skip
    return table


def _counts(audits: Mapping[str, Sequence[Audited]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("verdict")
    for name in audits:
        table.add_column(name.replace("_", "_\n", 1), justify="right")
    each = {name: counts(audited) for name, audited in audits.items()}
    for verdict in VERDICTS:
        table.add_row(verdict, *(str(each[name][verdict]) for name in audits))
    table.add_row("all", *(str(len(audited)) for audited in audits.values()), style="bold")
    return table
