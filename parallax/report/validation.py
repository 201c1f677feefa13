"""The paper's own validation points, decided by the figures at hand where they can be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from parallax.papers.paper import Paper
from parallax.results import StrategyResult

Verdict = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True)
class Decision:
    """A validation point with its verdict and the figures behind it. Never an exit status."""

    statement: str
    verdict: Verdict
    because: str


def decide(paper: Paper, results: tuple[StrategyResult, ...]) -> tuple[Decision, ...]:
    """Every validation point of the paper, in its order."""
    by_name = {r.name: r for r in results}
    out = []
    for point in paper.validations:
        check = CHECKS.get(point.check)
        verdict, because = (
            ("undecided", "needs what this release does not compute")
            if check is None
            else check(paper, by_name)
        )
        out.append(Decision(point.statement, verdict, because))
    return tuple(out)


def _proposed_is_faster(paper: Paper, results: dict[str, StrategyResult]) -> tuple[Verdict, str]:
    """By rooflines: they decide only where they leave no overlap with the claim's direction."""
    baseline, proposed = (results.get(n) for n in (paper.strategies[0], paper.proposed))
    if not (baseline and proposed and baseline.prediction and proposed.prediction):
        return "undecided", "both rooflines are needed"
    ours = proposed.prediction.tokens_per_s.value
    base = baseline.prediction.tokens_per_s.value
    shown = f"rooflines: {ours:.3g} against {base:.3g} tokens/s (modelled)"
    claimed = [c.value for c in paper.claims if c.quantity == "TPS" and c.strategy == paper.strategies[0]]
    if claimed and ours < claimed[0]:
        return "fail", f"{shown}; the proposed cannot reach the baseline's claimed {claimed[0]:.3g}"
    return "undecided", f"{shown}; upper bounds do not order real speeds"


def _same_function(paper: Paper, results: dict[str, StrategyResult]) -> tuple[Verdict, str]:
    found = [r.verification for r in results.values() if r.verification]
    if not found:
        return "undecided", "the verify lens did not run"
    worst = max(row.logits_error for v in found for row in v.rows if row.dtype == "float64")
    verdict: Verdict = "pass" if all(v.exact for v in found) else "fail"
    return verdict, f"largest logits error {worst:.1e} in float64 (measured)"


def _baseline_fits(paper: Paper, results: dict[str, StrategyResult]) -> tuple[Verdict, str]:
    found = {n: r.compilation for n, r in results.items() if r.compilation}
    if not found:
        return "undecided", "the compile lens did not run"
    bad = [n for n, c in found.items() if not c.memory.fits]
    return ("fail", f"does not fit: {', '.join(bad)}") if bad else ("pass", "all fit (compiled)")


def _layers_fit_l2(paper: Paper, results: dict[str, StrategyResult]) -> tuple[Verdict, str]:
    c = paper.config
    matrices = 3 if c.mlp == "gated" else 2
    layer = c.d_model * c.head_dim * 2 * (c.num_heads + c.num_kv_heads) + matrices * c.d_model * c.d_ff
    size = layer * c.item_bytes
    l2 = 52_428_800
    verdict: Verdict = "pass" if size <= l2 else "fail"
    return verdict, f"one layer is {size / 1e6:.4g} MB, the L2 of an H100 {l2 / 1e6:.3g} MB (derived)"


CHECKS: dict[str, Callable[[Paper, dict[str, StrategyResult]], tuple[Verdict, str]]] = {
    "proposed_is_faster": _proposed_is_faster,
    "same_function": _same_function,
    "fits_memory": _baseline_fits,
    "layers_fit_l2": _layers_fit_l2,
}
