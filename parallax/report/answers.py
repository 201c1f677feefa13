"""The six questions of the first screen, each answered for one strategy in a few words."""

from dataclasses import dataclass
from typing import Literal

from parallax.papers.paper import Paper
from parallax.report import words
from parallax.report.claims import against_bound
from parallax.report.exposure import exposure
from parallax.results.lens_results import StrategyResult, Tag

QUESTIONS = (
    "Exact?", "Fits?", "Moves, against the minimum?", "Exposed?", "How fast?", "Claimed?"
)  # fmt: skip

# The share of the modelled step from which exposed communication is marked.
_MUCH = 0.1


@dataclass(frozen=True)
class Part:
    """A piece of text and where its numbers come from."""

    text: str
    tag: Tag | None = None


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
      headline: the answer in a few characters.
      status: good, bad, warn, or none (not judged).
      parts: the lines below the headline.
      tag: where the headline's number comes from, if it has one.
    """

    headline: str
    status: Literal["good", "bad", "warn", "none"]
    parts: tuple[Part, ...]
    tag: Tag | None = None


def answers(result: StrategyResult, paper: Paper | None, same: bool, cluster: str) -> list[Answer]:
    """Return the answers to QUESTIONS, in order.

    Args:
      result: what the lenses found for one strategy.
      paper: the paper whose claims are compared, if any.
      same: whether this run is the paper's, so that figures can be compared.
      cluster: the cluster's name.
    """
    return [
        _exact(result), _fits(result), _moves(result), _exposed(result), _fast(result),
        _claimed(result, paper, same, cluster),
    ]  # fmt: skip


def _not_run(result: StrategyResult, lens: str) -> Answer:
    if lens in result.refused:
        return Answer("cannot run", "bad", (Part(words.one_line(result.refused[lens])),))
    why = result.skipped.get(lens, "not asked for")
    return Answer("not run", "none", (Part(f"{lens}: {words.one_line(why)}"),))


def _exact(result: StrategyResult) -> Answer:
    if result.verification is None:
        return _not_run(result, "verify")
    rows = result.verification.rows
    parts = tuple(
        Part(f"{row.dtype}: logits {words.error(row.logits_error)}"
             + ("" if row.gradients_error is None
                else f", gradients {words.error(row.gradients_error)}"), "measured")
        for row in rows
    )  # fmt: skip
    if result.verification.approximation:
        said = Part(result.verification.approximation)
        return Answer("approximate", "warn", (said, *parts))
    exact = result.verification.exact
    if (off := result.verification.off_dense) is not None:
        said = f"for the compressed model; its logits' error against dense is {words.error(off)}"
        parts = (*parts, Part(said, "measured"))
    return Answer("exact" if exact else "not exact", "good" if exact else "bad", parts)


def _fits(result: StrategyResult) -> Answer:
    if result.compilation is None:
        return _not_run(result, "compile")
    memory = result.compilation.memory
    parts = [
        Part(f"{words.in_bytes(memory.total_bytes)} per device", "compiled"),
        Part(f"{words.percent(memory.total_bytes / memory.usable_bytes)} of the usable "
             f"{words.in_bytes(memory.usable_bytes)}", "assumed"),
    ]  # fmt: skip
    if not memory.fits:
        excess = memory.total_bytes - memory.usable_bytes
        parts.append(Part(f"{words.in_bytes(excess)} too much", "compiled"))
        if result.knob:
            parts.append(Part(result.knob, "derived"))
        return Answer("does not fit", "bad", tuple(parts))
    return Answer("fits", "good", tuple(parts))


def _moves(result: StrategyResult) -> Answer:
    compilation = result.compilation
    if compilation is None:
        return _not_run(result, "compile")
    moved = Part(f"{words.in_bytes(compilation.wire_bytes)} sent per device", "compiled")
    if not compilation.has_closed_form:
        return Answer("no closed form", "none", (moved,))
    minimum = Part(f"minimum {words.in_bytes(compilation.minimum_bytes)}", "derived")
    if not compilation.ledger_matches:
        first = compilation.differences[0]
        said = f"{first.kind}: {first.witness} says {words.in_bytes(first.expected_bytes)}, "
        said += f"the program sends {words.in_bytes(first.found_bytes)}"
        return Answer("not its closed form", "bad", (moved, minimum, Part(said, "compiled")))
    if not compilation.minimum_bytes:
        return Answer("nothing to send", "good", (moved, minimum))
    share = compilation.wire_bytes / compilation.minimum_bytes
    return Answer(f"{words.ratio(share)}x minimum", "good", (moved, minimum), "compiled")


def _exposed(result: StrategyResult) -> Answer:
    compilation = result.compilation
    if compilation is None:
        return _not_run(result, "compile")
    seen = exposure(compilation)
    if not seen.total_bytes:
        return Answer("nothing to expose", "good", ())
    share = seen.exposed_bytes / seen.total_bytes
    classes = (
        ("async, GEMMs between", seen.overlapped_bytes),
        ("async, nothing between", seen.idle_bytes),
        ("synchronous", seen.sync_bytes),
    )
    parts = [Part(f"{words.in_bytes(size)} {what}", "compiled") for what, size in classes if size]
    if seen.flops_between:
        parts.append(Part(f"{words.in_flops(seen.flops_between)} of GEMMs between", "compiled"))
    text = f"{words.percent(share)} of bytes with no GEMM between"
    if result.prediction is None:
        return Answer(text, "warn" if share > 0.5 else "none", tuple(parts), "compiled")
    uncovered = result.prediction.exposed_s.value
    is_much = uncovered > _MUCH * result.prediction.step_s.value
    hidden = words.in_seconds(result.prediction.hidden_s.value)
    parts.insert(0, Part(f"{hidden} of communication behind kernels", "modelled"))
    parts.append(Part(text, "compiled"))
    headline = f"{words.in_seconds(uncovered)} exposed"
    return Answer(headline, "warn" if is_much else "none", tuple(parts), "modelled")


def _fast(result: StrategyResult) -> Answer:
    prediction = result.prediction
    if prediction is None:
        return _not_run(result, "predict")
    step = prediction.step_s
    headline = words.in_tokens_per_s(prediction.tokens_per_s.value)
    if step.low is None:
        bar = "at least, some of it unpriced"
    elif step.high is None:
        bar = "at least, a loop's trip count being unknown"
    else:
        bar = f"{words.in_seconds(step.low)} to {words.in_seconds(step.high)}"
    parts = [
        Part(f"{words.STEPS[prediction.phase]} {words.in_seconds(step.value)}, {bar}", "modelled")
    ]
    if prediction.mfu is not None:
        parts.append(Part(f"MFU {words.percent(prediction.mfu.value)}", "modelled"))
    largest = max(prediction.terms_s, key=lambda name: prediction.terms_s[name])
    share = words.percent(prediction.terms_s[largest] / step.value)
    parts.append(Part(f"{share} of the step: {largest}", "modelled"))
    if prediction.unvalidated:
        headline += ", unvalidated"
        parts.append(Part(f"no published measurement validates the {prediction.unvalidated}"))
    return Answer(headline, "warn" if prediction.unvalidated else "none", tuple(parts), "modelled")


def _claimed(result: StrategyResult, paper: Paper | None, same: bool, cluster: str) -> Answer:
    bound = []
    if result.prediction is not None:
        at_most = words.in_tokens_per_s(result.prediction.bound.tokens_per_s.value)
        bound = [Part(f"roofline: at most {at_most}", "modelled")]
    mine = [] if paper is None else [c for c in paper.claims if c.strategy == result.name]
    tps = next((c for c in mine if c.quantity == "TPS"), None)
    if tps is None:
        return Answer("no claim", "none", tuple(bound))
    parts, status = [Part(words.in_tokens_per_s(tps.value), "claimed")], "none"
    tpot = next((c for c in mine if c.quantity == "TPOT"), None)
    if tpot is not None:
        reading = words.READINGS[tpot.reading]
        parts.append(Part(f"TPOT {words.quantity(tpot.value, tpot.unit)}: {reading}", "claimed"))
    headline, tag = "not compared", None
    if same and result.prediction is not None:
        _, above = against_bound(tps, result.prediction.bound, cluster)
        share = tps.value / result.prediction.bound.tokens_per_s.value
        headline = (
            f"{words.times(share)} the roofline" if above else f"{words.percent(share)} of roofline"
        )
        status, tag = "bad" if above else "none", "modelled"
    return Answer(headline, status, (*parts, *bound), tag)
