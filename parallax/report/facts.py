"""The comparison as rows: one fact a row, one strategy a column, every row with its tag."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from parallax.papers.paper import Paper
from parallax.report import words
from parallax.report.exposure import exposure
from parallax.results.lens_results import (
    Compilation,
    Prediction,
    RouterFacts,
    StrategyResult,
    Tag,
    Verification,
)

# A closed form further from the compiled prediction than this is shown as an error.
_APART = 0.1
_TERMS = (
    "matrix products", "attention", "memory", "launches", "exposed communication",
    "up to the roofline",
)  # fmt: skip
Status = Literal["good", "bad", "plain"]


@dataclass(frozen=True)
class Cell:
    """One strategy's word on one fact."""

    text: str
    status: Status = "plain"


@dataclass(frozen=True)
class Row:
    """One fact of all strategies.

    Attributes:
      question: the group it belongs to.
      label: the fact.
      tag: where its numbers are from.
      cells: one a strategy; None where it has none.
    """

    question: str
    label: str
    tag: Tag
    cells: tuple[Cell | None, ...]


def fact_rows(results: tuple[StrategyResult, ...], paper: Paper | None) -> tuple[Row, ...]:
    """All rows that have at least one cell."""
    rows = [
        *_refused_rows(results),
        *_exact_rows(results),
        *_rows("Fits?", results, _compiled, _FIT),
        *_rows("Moves?", results, _compiled, _MOVE),
        *_rows("Exposed?", results, _compiled, _EXPOSED),
        *_rows("Exposed?", results, _itself, _EXPOSED_TIME),
        *_rows("How fast?", results, _itself, _SPEED),
    ]
    if paper is not None:
        rows += _claim_rows(results, paper)
    return tuple(row for row in rows if any(row.cells))


def _refused_rows(results: tuple[StrategyResult, ...]) -> list[Row]:
    """Which strategies cannot run, where one cannot; the reasons are among the failures."""
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
        found = [of(r) for r in results]
        cells = tuple(None if x is None else fact(x) for x in found)
        rows.append(Row(question, label, tag, cells))
    return rows


def _yes(holds: bool, no: str = "no") -> Cell:
    return Cell("yes", "good") if holds else Cell(no, "bad")


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
    return None if v.same_tokens is None else _yes(v.same_tokens)


def _off_dense(v: Verification) -> Cell | None:
    return None if v.off_dense is None else Cell(words.error(v.off_dense))


def _exact(v: Verification) -> Cell:
    return Cell("approximate") if v.approximation else _yes(v.exact)


_EXACTNESS: tuple[tuple[str, Callable[[Verification], Cell | None]], ...] = (
    ("equals unsharded model", _exact),
    ("same greedy tokens", _same_tokens),
    ("compressed, off the dense logits", _off_dense),
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
    found, limit = (
        (row.logits_error, row.logits_limit)
        if what == "logits"
        else (row.gradients_error, row.gradients_limit)
    )
    if found is None or limit is None:
        return None
    holds = found <= limit
    sign = "<=" if holds else ">"
    return Cell(f"{words.error(found)} {sign} {words.error(limit)}", "plain" if holds else "bad")


def _fits(c: Compilation) -> Cell:
    excess = c.memory.total_bytes - c.memory.usable_bytes
    return _yes(c.memory.fits, f"no, {words.in_bytes(excess)} over")


def _usable(c: Compilation) -> Cell:
    usable, capacity = c.memory.usable_bytes, c.memory.capacity_bytes
    return Cell(f"{words.in_bytes(usable).split()[0]} of {words.in_bytes(capacity)}")


def _kv(c: Compilation, sign: str = "") -> Cell:
    return Cell(f"{sign}{words.in_bytes(c.kv_cache_bytes)}")


def _largest_batch(c: Compilation) -> Cell | None:
    """Sequences whose cache would fit beside all the rest that this step holds."""
    if not c.reads_cache:
        return None
    rest = c.memory.total_bytes - c.kv_cache_bytes
    room = (c.memory.usable_bytes - rest) / (c.kv_cache_bytes / c.workload.batch)
    return Cell(f"about {words.digits(max(0, int(room)))}")


def _a_token(link: str) -> Callable[[Compilation], Cell | None]:
    def cell(c: Compilation) -> Cell | None:
        if not c.reads_cache or not c.link_bytes:
            return None
        sent = c.link_bytes[link] / c.tokens
        return Cell(words.in_bytes(sent) if sent else "none")

    return cell


_FIT = (
    ("fits a device", "compiled", _fits),
    ("memory a device", "compiled", lambda c: Cell(words.in_bytes(c.memory.total_bytes))),
    ("share of usable", "compiled",
     lambda c: Cell(words.percent(c.memory.total_bytes / c.memory.usable_bytes))),
    ("of it parameters", "compiled", lambda c: Cell(words.in_bytes(c.memory.parameter_bytes))),
    ("copies of a weight", "derived",
     lambda c: Cell(words.times(c.evenness.replication)) if c.evenness else None),
    ("usable memory", "assumed", _usable),
    ("of it KV cache", "derived", lambda c: _kv(c) if c.reads_cache else None),
    ("largest batch, this length", "derived", lambda c: _largest_batch(c)),
    ("KV cache, if kept", "derived",
     lambda c: _kv(c, "+ ") if c.kv_cache_bytes and not c.reads_cache else None),
)  # fmt: skip


def _minimum(c: Compilation) -> Cell:
    return Cell(words.in_bytes(c.minimum_bytes) if c.has_closed_form else "no closed form")


def _ratio(c: Compilation) -> Cell | None:
    if not c.has_closed_form:
        return None
    if not c.minimum_bytes:
        return Cell("nothing to send" if not c.wire_bytes else "minimum is 0")
    return Cell(words.ratio(c.wire_bytes / c.minimum_bytes))


def _matches(c: Compilation) -> Cell | None:
    if not c.has_closed_form:
        return None
    return _yes(c.ledger_matches, f"no, {len(c.differences)} differ")


_MOVE = (
    ("leaves a device", "compiled", lambda c: Cell(words.in_bytes(c.wire_bytes))),
    ("closed-form minimum", "derived", _minimum),
    ("compiled / derived", "compiled", _ratio),
    ("ledger = closed form", "compiled", _matches),
    ("NVLink, a token", "compiled", _a_token("nvlink")),
    ("network, a token", "compiled", _a_token("nic")),
)


def _class(name: str) -> Callable[[Compilation], Cell]:
    def cell(c: Compilation) -> Cell:
        found = exposure(c)
        moved = getattr(found, f"{name}_bytes")
        if not moved:
            return Cell("none")
        return Cell(f"{words.in_bytes(moved)}, {words.percent(moved / found.total_bytes)}")

    return cell


def _between(c: Compilation) -> Cell | None:
    flops = exposure(c).flops_between
    return Cell(words.in_flops(flops)) if flops else None


_EXPOSED = (
    ("async, GEMMs between", "compiled", _class("overlapped")),
    ("async, nothing between", "compiled", _class("idle")),
    ("synchronous", "compiled", _class("sync")),
    ("GEMM FLOPs between", "compiled", _between),
)


def _bound_step(r: StrategyResult) -> Cell | None:
    if r.prediction is None:
        return None
    return Cell(f">= {words.in_seconds(r.prediction.bound.step_s.value)}")


def _bound_by(r: StrategyResult) -> Cell | None:
    if r.prediction is None:
        return None
    return Cell(r.prediction.bound.set_by)


def _bound_tokens(r: StrategyResult) -> Cell | None:
    if r.prediction is None:
        return None
    return Cell(f"<= {words.in_tokens_per_s(r.prediction.bound.tokens_per_s.value)}")


def _of_prediction(fact: Callable[[Prediction], str | None]) -> Callable:
    def cell(r: StrategyResult) -> Cell | None:
        text = None if r.prediction is None else fact(r.prediction)
        return None if text is None else Cell(text)

    return cell


def _headline(p: Prediction, text: str) -> str:
    return f"{text} unvalidated" if p.unvalidated else text


def _step(p: Prediction) -> str:
    return _headline(p, words.in_seconds(p.step_s.value))


def _bar(p: Prediction) -> str:
    low, high = p.step_s.low, p.step_s.high
    assert low is not None
    assert high is not None
    return f"{words.in_seconds(low)}-{words.in_seconds(high)}"


def _throughput(p: Prediction) -> str:
    rate = words.in_tokens_per_s(p.tokens_per_s.value).removesuffix(" tokens/s")
    return _headline(p, rate)


def _closed_form(p: Prediction) -> str | None:
    if p.estimate_s is None:
        return None
    apart = p.estimate_s.value / p.step_s.value - 1
    said = f"{words.in_seconds(p.estimate_s.value)}, {apart:+.0%}"
    return said if abs(apart) <= _APART else f"{said} (!)"


def _share(name: str) -> Callable:
    def text(p: Prediction) -> str | None:
        seconds = p.terms_s.get(name, 0.0)
        if not seconds:
            return None
        return f"{words.in_seconds(seconds)}, {words.percent(seconds / p.step_s.value)}"

    return _of_prediction(text)


def _energy(p: Prediction) -> str:
    tokens = p.tokens_per_s.value * p.step_s.value
    return f"{words.digits(p.energy_j.value / tokens)} J"


_EXPOSED_TIME = (
    ("exposed", "modelled", _of_prediction(lambda p: words.in_seconds(p.exposed_s.value))),
    ("hidden", "modelled", _of_prediction(lambda p: words.in_seconds(p.hidden_s.value))),
    ("exposed a token", "modelled",
     _of_prediction(lambda p: words.in_seconds(p.exposed_per_token_s.value))),
)  # fmt: skip


def _measured(r: StrategyResult) -> Cell | None:
    if r.measurement is None:
        return None
    step = r.measurement.step_s
    text = words.in_seconds(step.value)
    if step.low is not None and step.high is not None:
        text += f" ± {words.in_seconds((step.high - step.low) / 2)}"
    return Cell(text)


def _measured_energy(r: StrategyResult) -> Cell | None:
    energy = r.measurement and r.measurement.energy_a_token_j
    return Cell(f"{words.digits(energy.value)} J") if energy else None


def _of_compiled(fact: Callable[[Compilation], Cell | None]) -> Callable:
    return lambda r: None if r.compilation is None else fact(r.compilation)


def _read(size: float) -> Cell:
    return Cell(words.in_bytes(size))


def _bubble(c: Compilation) -> Cell | None:
    return Cell(words.percent(c.evenness.bubble)) if c.evenness else None


def _padded(c: Compilation) -> Cell | None:
    if c.evenness is None or not c.evenness.padded_share:
        return None
    return Cell(f"{words.percent(c.evenness.padded_share)} of layers")


_SPEED = (
    ("GEMM FLOPs a device", "compiled",
     lambda r: Cell(words.in_flops(r.compilation.gemm_flops)) if r.compilation else None),
    ("busiest device / mean", "compiled",
     _of_compiled(lambda c: Cell(words.ratio(c.flop_imbalance)))),
    ("bubble", "derived", _of_compiled(_bubble)),
    ("weights read a step", "derived",
     _of_compiled(lambda c: _read(c.weight_bytes) if c.reads_cache else None)),
    ("KV cache read a step", "derived",
     _of_compiled(lambda c: _read(c.kv_cache_bytes) if c.reads_cache else None)),
    ("filled up with zeros", "derived", _of_compiled(_padded)),
    ("tokens/s", "modelled", _of_prediction(_throughput)),
    ("step", "modelled", _of_prediction(_step)),
    ("step, 80 % error bar", "modelled", _of_prediction(_bar)),
    *((f"- {name}", "modelled", _share(name)) for name in _TERMS),
    ("MFU", "modelled", _of_prediction(lambda p: words.percent(p.mfu.value) if p.mfu else None)),
    ("energy a token", "modelled", _of_prediction(_energy)),
    ("step by closed form", "modelled", _of_prediction(_closed_form)),
    ("roofline step", "modelled", _bound_step),
    ("set by", "modelled", _bound_by),
    ("roofline throughput", "modelled", _bound_tokens),
    ("step here, 95 % CI", "measured", _measured),
    ("energy a token here", "measured", _measured_energy),
)  # fmt: skip


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
