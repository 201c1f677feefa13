"""Several papers on one page: each strategy in one line, in the words of the full reports."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parallax.papers.paper import Paper
from parallax.report import words
from parallax.report.comparison import Comparison
from parallax.results import StrategyResult

_STYLES = {"yes": "green", "approximate": "yellow"}
# Column and its width: 100 in all, with a space between.
_COLUMNS = (
    ("strategy", 27), ("exact", 11), ("memory", 13), ("sent/least", 10), ("bubble", 6),
    ("at most", 8), ("claimed", 8), ("of bound", 8),
)  # fmt: skip


def overview_table(reports: Sequence[Comparison]) -> RenderableType:
    """One block a paper; reads at 100 columns.

    Errors and bytes are measured and compiled, bounds modelled (a roofline: nothing is faster),
    claims a paper's own.
    """
    blocks: list[RenderableType] = []
    for i, report in enumerate(reports):
        name = report.paper.name if report.paper else report.config.name
        blocks.append(Text(f"{name}, {report.cluster}", style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=i == 0)
        for column, width in _COLUMNS:
            justify = "left" if column == "strategy" else "right"
            table.add_column(column, justify=justify, width=width, no_wrap=True)
        for result in report.results:
            table.add_row(Text(f"  {result.name}"), *_cells(result, report.paper))
        blocks.append(table)
    failed = [r.paper.name for r in reports if r.failed and r.paper]
    last = "All exact, fitting, and sending what their closed forms say."
    if failed:
        last = f"Not so in {', '.join(failed)}: see their reports."
    return Group(
        *blocks,
        Text(_LEGEND, style="dim"),
        Text(last, style="bold red" if failed else "green"),
    )


_LEGEND = (
    "exact: measured on the small model. memory a device, sent/least bytes: compiled. bubble: "
    "derived. at most: tokens/s of a roofline, modelled; claimed: tokens/s; of bound: their ratio."
)


def _cells(result: StrategyResult, paper: Paper | None) -> list[Text]:
    compiled, bound, claim = result.compilation, None, None
    if result.prediction is not None:
        bound = result.prediction.bound.tokens_per_s.value
    if paper is not None:
        key = (result.name, "TPS")
        claim = next((c.value for c in paper.claims if (c.strategy, c.quantity) == key), None)
    found = [_exact(result), "not run", "not run", "", "", "", ""]
    rate = words.in_tokens_per_s
    if compiled is not None:
        found[1] = words.in_bytes(compiled.memory.total_bytes)
        if not compiled.memory.fits:
            found[1] += " (!)"
        found[2] = "nothing"
        if compiled.minimum_bytes:
            found[2] = words.ratio(compiled.wire_bytes / compiled.minimum_bytes)
        if not compiled.ledger_matches:
            found[2] += " (!)"
        if compiled.evenness is not None:
            found[3] = words.percent(compiled.evenness.bubble)
    if bound is not None:
        found[4] = rate(bound).removesuffix(" tokens/s")
    if claim is not None:
        found[5] = rate(claim).removesuffix(" tokens/s")
    if claim is not None and bound is not None:
        found[6] = words.percent(claim / bound)
    return [Text(x, style=_style(x)) for x in found]


def _exact(result: StrategyResult) -> str:
    if result.verification is None:
        return "not run"
    if result.verification.approximation:
        return "approximate"
    return "yes" if result.verification.exact else "no"


def _style(text: str) -> str:
    return "bold red" if text == "no" or "(" in text else _STYLES.get(text, "")
