"""The comparison as rows: one fact per row, one strategy per column, every row with its tag."""

import functools
from collections.abc import Callable, Iterator

from parallax.papers.paper import Paper
from parallax.report import words
from parallax.report.compiled_facts import EXPOSED, MEMORY, MOVE, ROOM
from parallax.report.facts import Cell, Row, yes_or_no
from parallax.report.speed_facts import EXPOSED_TIME, SPEED
from parallax.report.training_rows import TRAIN_MEMORY, TRAINED
from parallax.results.lens_results import (
    Compilation,
    StrategyResult,
    Verification,
)
from parallax.results.router_facts import RouterFacts


def fact_rows(results: tuple[StrategyResult, ...], paper: Paper | None) -> tuple[Row, ...]:
    """Return all rows that have at least one cell."""
    rows = [
        *_refused_rows(results),
        *_exact_rows(results),
        *_rows("How trained?", results, _itself, TRAINED),
        *_rows("Fits?", results, _compiled, MEMORY),
        *_rows("Fits?", results, _itself, TRAIN_MEMORY),
        *_rows("Fits?", results, _compiled, ROOM),
        *_rows("Moves?", results, _compiled, MOVE),
        *_rows("Exposed?", results, _compiled, EXPOSED),
        *_rows("Exposed?", results, _itself, EXPOSED_TIME),
        *_rows("How fast?", results, _itself, SPEED),
    ]
    if paper is not None:
        rows += _claim_rows(results, paper)
    return tuple(row for row in rows if any(row.cells))


def _refused_rows(results: tuple[StrategyResult, ...]) -> list[Row]:
    """Return the row of what cannot run, if anything; the reasons are among the failures."""
    if not any(result.refused for result in results):
        return []
    cells = tuple(
        Cell(f"cannot {', '.join(r.refused)}", "bad") if r.refused else Cell("yes", "good")
        for r in results
    )
    return [Row("Runs?", "every lens asked for", "derived", cells)]


def _itself(result: StrategyResult) -> StrategyResult:
    return result


def _compiled(result: StrategyResult) -> Compilation | None:
    return result.compilation


def _rows(question: str, results, of: Callable, facts) -> list[Row]:
    rows = []
    for label, tag, fact in facts:
        subjects = [of(r) for r in results]
        cells = tuple(None if x is None else fact(x) for x in subjects)
        rows.append(Row(question, label, tag, cells))
    return rows


def _claim_rows(results: tuple[StrategyResult, ...], paper: Paper) -> list[Row]:
    rows = []
    for quantity in ("TPS", "TPOT"):
        cells = []
        for result in results:
            key = (result.name, quantity)
            claim = next((c for c in paper.claims if (c.strategy, c.quantity) == key), None)
            cells.append(None if claim is None else Cell(words.quantity(claim.value, claim.unit)))
        label = quantity if quantity == "TPS" else "TPOT (see below)"
        rows.append(Row("Claimed?", label, "claimed", tuple(cells)))
    return rows


def _exact_rows(results: tuple[StrategyResult, ...]) -> list[Row]:
    checks = [r.verification for r in results]
    dtypes = dict.fromkeys(row.dtype for v in checks if v for row in v.rows)
    errors = [
        (f"{dtype} {what}", functools.partial(_error, dtype=dtype, what=what))
        for dtype in dtypes
        for what in ("logits", "gradients")
    ]
    facts = (*_EXACTNESS, *_router_facts(), *errors)
    return [_exact_row(label, fact, checks) for label, fact in facts]


def _exact_row(
    label: str, fact: Callable[[Verification], Cell | None], checks: list[Verification | None]
) -> Row:
    cells = tuple(None if v is None else fact(v) for v in checks)
    return Row("Exact?", label, "measured", cells)


def _same_tokens(v: Verification) -> Cell | None:
    return None if v.same_tokens is None else yes_or_no(v.same_tokens)


def _off_dense(v: Verification) -> Cell | None:
    return None if v.off_dense is None else Cell(words.error(v.off_dense))


def _exact(v: Verification) -> Cell:
    return Cell("approximate") if v.approximation else yes_or_no(v.exact)


_EXACTNESS: tuple[tuple[str, Callable[[Verification], Cell | None]], ...] = (
    ("equals unsharded model", _exact),
    ("same greedy tokens", _same_tokens),
    ("error against dense logits", _off_dense),
)
_ROUTERS: tuple[tuple[str, Callable[[RouterFacts], Cell | None]], ...] = (
    ("smallest top-k margin", lambda x: Cell(words.error(x.smallest_margin))),
    ("busiest expert / mean", lambda x: Cell(words.ratio(x.load_max_over_mean))),
    ("choices dropped", lambda x: Cell(words.percent(x.dropped)) if x.dropped else None),
    ("choices that flip",
     lambda x: Cell(", ".join(f"{words.percent(share)} in {dtype}"
                              for dtype, share in x.flips.items())) if x.flips else None),
)  # fmt: skip


def _router_facts() -> Iterator[tuple[str, Callable[[Verification], Cell | None]]]:
    for label, fact in _ROUTERS:
        yield label, lambda v, fact=fact: None if v.router is None else fact(v.router)


def _error(v: Verification, dtype: str, what: str) -> Cell | None:
    row = next((row for row in v.rows if row.dtype == dtype), None)
    if row is None:
        return None
    error, limit = (
        (row.logits_error, row.logits_limit)
        if what == "logits"
        else (row.gradients_error, row.gradients_limit)
    )
    if error is None or limit is None:
        return None
    holds = error <= limit
    sign = "<=" if holds else ">"
    return Cell(f"{words.error(error)} {sign} {words.error(limit)}", "plain" if holds else "bad")
