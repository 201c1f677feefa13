"""A paper's figures beside this run's, in plain sentences."""

from collections.abc import Iterable
from dataclasses import dataclass

from parallax.models.config import ModelConfig
from parallax.papers.paper import Claim, Paper
from parallax.report import words
from parallax.results.lens_results import Bound, StrategyResult
from parallax.workload import Workload


@dataclass(frozen=True)
class ClaimSentence:
    """One claim of a paper, with what is known about it.

    Attributes:
      claim: the claim as printed.
      reading: what the figure can mean, in words.
      finding: what this run says of it, to follow the figure; "" if nothing.
      contradicted: whether the claim is above what the modelled bound allows.
    """

    claim: Claim
    reading: str
    finding: str
    contradicted: bool = False

    @property
    def text(self) -> str:
        """Return the claim, its reading and its finding in one line."""
        head = f"{self.claim.strategy}: " if self.claim.strategy else ""
        text = f"{head}claimed {printed(self.claim)}"
        if self.claim.quantity == "TPOT":
            text += f", read as {self.reading}"
        return "; ".join(x for x in (text + self.finding, self.claim.reason) if x)


def printed(claim: Claim) -> str:
    """Return the figure as the paper prints it, with its quantity where the unit leaves it open."""
    value = words.quantity(claim.value, claim.unit)
    return value if claim.quantity == "TPS" else f"{claim.quantity} {value}"


def other_than_the_papers(
    paper: Paper,
    config: ModelConfig,
    workload: Workload,
    results: Iterable[StrategyResult],
) -> str:
    """Return why this run's figures cannot be compared with the paper's; "" if they can."""
    if not paper.is_of_size(config, workload):
        return "this run is not the paper's size"
    phases = {r.compilation.phase for r in results if r.compilation is not None} - {"prefill"}
    return f"this run is {words.PHASES[phases.pop()]}" if phases else ""


def claim_sentences(
    paper: Paper,
    config: ModelConfig,
    workload: Workload,
    cluster: str,
    results: tuple[StrategyResult, ...],
) -> tuple[ClaimSentence, ...]:
    """Return every claim of a paper, with throughput compared with this run's modelled bound."""
    other = other_than_the_papers(paper, config, workload, results)
    by_name = {r.name: r for r in results}
    sentences = []
    for claim in paper.claims:
        finding, contradicted = "", False
        if claim.quantity == "TPS":
            result = by_name.get(claim.strategy)
            if result is None:
                finding = "; not compared: this strategy was not run"
            elif other:
                finding = f"; not compared: {other}"
            elif result.prediction is None:
                finding = "; not compared: no modelled bound in this run"
            else:
                finding, contradicted = against_bound(claim, result.prediction.bound, cluster)
        sentences.append(ClaimSentence(claim, words.READINGS[claim.reading], finding, contradicted))
    return tuple(sentences)


def against_bound(claim: Claim, roofline: Bound, cluster: str) -> tuple[str, bool]:
    """Return a claimed throughput relative to the modelled bound, and whether it is above it."""
    bound = roofline.tokens_per_s.value
    limit = words.BOUNDS.get(roofline.set_by, roofline.set_by)
    at_most = f"at most {words.in_tokens_per_s(bound)}, roofline, modelled"
    if claim.value > bound:
        factor = words.times(claim.value / bound)
        return f" is {factor} what {limit} allows on {cluster} ({at_most})", True
    share = words.percent(claim.value / bound)
    return f" is {share} of what {limit} allows on {cluster} ({at_most})", False


def tpot_reading(paper: Paper) -> str:
    """Return what the paper's TPOT is and is not; "" if the paper prints none."""
    readings = dict.fromkeys(c.reading for c in paper.claims if c.quantity == "TPOT")
    if not readings:
        return ""
    what = " or ".join(words.READINGS[r] for r in readings)
    return f"The paper's TPOT is {what}; it is not the time per output token of a request."
