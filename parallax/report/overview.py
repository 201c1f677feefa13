"""Several papers on one page: one line per strategy, in the terms of the full reports."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from parallax.papers.paper import Paper
from parallax.papers.results import Audited
from parallax.report import words
from parallax.report.comparison import Comparison
from parallax.report.table import passed_line
from parallax.results.lens_results import StrategyResult

_STYLES = {"yes": "green", "approximate": "yellow"}
# The columns and their widths: 100 in all, with a space between.
_COLUMNS = (
    ("strategy", 27), ("exact", 11), ("memory", 11), ("sent", 8), ("modelled", 8),
    ("at most", 7), ("claimed", 7), ("verdict", 14),
)  # fmt: skip
# Verdicts on a claimed throughput, short enough for the column.
_VERDICTS = {
    "consistent": "consistent",
    "beyond the physical bound": "beyond",
    "contradicts another claim": "contradicts",
    "modelled, off by": "off",
}


def overview_table(reports: Sequence[Comparison]) -> RenderableType:
    """Render one block per paper, 100 columns wide.

    Errors are measured, bytes compiled, bounds modelled (a roofline: nothing is faster), and claims
    are the paper's own.
    """
    blocks: list[RenderableType] = []
    for i, report in enumerate(reports):
        name = report.paper.name if report.paper else report.config.name
        blocks.append(Text(f"{name}, {report.cluster}", style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=i == 0)
        for column, width in _COLUMNS:
            justify = "left" if column == "strategy" else "right"
            table.add_column(column, justify=justify, width=width, no_wrap=True)
        audited = {a.claim.strategy: a for a in report.findings.audited if a.tps}
        for result in report.results:
            cells = _cells(result, report.paper, audited.get(result.name))
            table.add_row(Text(f"  {result.name}"), *cells)
        blocks += [table, Text(report.answer)]
    failed = [r.paper.name for r in reports if r.failed and r.paper]
    results = tuple(result for report in reports for result in report.results)
    all_checked = all(r.verification and r.compilation for r in results)
    last = "All are exact, fit, and send what their closed forms say."
    if not all_checked:
        last = passed_line(results)
    if failed:
        last = f"A strategy fails in {', '.join(failed)}: see the full report."
    return Group(
        *blocks,
        Text(_LEGEND, style="dim"),
        Text(last, style="bold red" if failed else "green" if all_checked else ""),
    )


_LEGEND = (
    "exact: measured on the small model. memory per device, bytes sent over the minimum: compiled. "
    "tokens/s: modelled (*: time between nodes or of hand-written kernels, unvalidated), at most "
    "(a roofline), claimed. verdict on the claim: the factor by which it is beyond the bound or "
    "off the modelled figure; see parallax claims."
)


def _cells(result: StrategyResult, paper: Paper | None, audited: Audited | None) -> list[Text]:
    compiled, claim = result.compilation, None
    if paper is not None:
        key = (result.name, "TPS")
        claim = next((c.value for c in paper.claims if (c.strategy, c.quantity) == key), None)
    texts = [_exact(result), "not run", "not run", "", "", "", ""]
    rate = words.in_tokens_per_s
    if compiled is not None:
        texts[1] = words.in_bytes(compiled.memory.total_bytes)
        if not compiled.memory.fits:
            texts[1] += " (!)"
        texts[2] = "nothing"
        if compiled.minimum_bytes:
            texts[2] = words.ratio(compiled.wire_bytes / compiled.minimum_bytes)
        if not compiled.ledger_matches:
            texts[2] += " (!)"
    if result.prediction is not None:
        predicted = result.prediction
        star = "*" if predicted.unvalidated else ""
        texts[3] = rate(predicted.tokens_per_s.value).removesuffix(" tokens/s") + star
        texts[4] = rate(predicted.bound.tokens_per_s.value).removesuffix(" tokens/s")
    if claim is not None:
        texts[5] = rate(claim).removesuffix(" tokens/s")
    if audited is not None:
        off = audited.off_by
        texts[6] = _VERDICTS.get(audited.verdict, audited.verdict)
        if audited.verdict in ("modelled, off by", "beyond the physical bound") and off:
            texts[6] += f" {words.times(max(off, 1 / off))}"
    return [Text(x, style=_style(x)) for x in texts]


def _exact(result: StrategyResult) -> str:
    if result.verification is None:
        return "not run"
    if result.verification.approximation:
        return "approximate"
    return "yes" if result.verification.exact else "no"


def _style(text: str) -> str:
    return "bold red" if text == "no" or "(" in text else _STYLES.get(text, "")
