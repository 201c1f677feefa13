"""The reason why a candidate is not the first, in one line."""

from collections.abc import Mapping
from typing import Any

from parallax.meshes.cluster import Cluster
from parallax.search.results import Candidate, SearchRequest
from parallax.search.train_results import TrainCandidate, TrainSearchRequest

_GIGA = 1e9
# Differences below this share of the winner's time are not mentioned.
_WORTH = 0.005
_SAID = {
    "exposed communication": "communication that nothing overlaps",
    "matrix products": "matrix products",
    "memory": "passes over memory",
    "attention": "attention",
    "host copies": "copies to and from the host",
    "launches": "kernel launches",
}


def why_not(
    request: SearchRequest, cluster: Cluster, candidate: Candidate, first: Candidate
) -> str:
    """Explain in one line why a candidate is not the first; "" for the winner itself."""
    memory = candidate.timing.memory_bytes.value
    if not candidate.fits:
        usable = cluster.usable_bytes
        return (
            f"does not fit: {memory / _GIGA:.3g} GB of {usable / _GIGA:.3g} GB usable, "
            f"{memory / usable:.2g} times"
        )
    tpot = candidate.timing.tpot_s
    limit = request.max_tpot_s
    if limit is not None and tpot is not None and tpot.value > limit:
        return f"TPOT {1e3 * tpot.value:.3g} ms is over the limit of {1e3 * limit:.3g} ms"
    if candidate is first:
        return ""
    text = _behind(request.objective, candidate, first)
    if candidate.bubble > first.bubble + 0.02:
        text += f"; stages idle {candidate.bubble:.0%} more ticks than microbatches"
    if candidate.padded > first.padded + 0.02:
        text += f"; {candidate.padded:.0%} of its layers pad shorter stages"
    return text


def _behind[C: (Candidate, TrainCandidate)](objective: Any, candidate: C, first: C) -> str:
    """Say how many times the first's score a candidate has, and where most of it comes from."""
    # An analytical estimate is compared with the winner's own, not with its compiled program.
    mine, best = candidate.timing, first.timing
    if candidate.compiled is None:
        best = first.closed_form
    ratio = mine.score(objective) / best.score(objective)
    return f"{ratio:.3g}x the first's" + _most_of_it(mine.terms_s, best.terms_s)


def why_not_train(
    request: TrainSearchRequest, usable: float, candidate: TrainCandidate, first: TrainCandidate
) -> str:
    """Explain in one line why a way to train is not the first; "" for the winner itself."""
    memory = candidate.timing.memory_bytes.value
    if not candidate.fits:
        return (
            f"does not fit: {memory / _GIGA:.3g} GB of {usable / _GIGA:.3g} GB usable, even with "
            f"remat {candidate.remat} and {candidate.microbatches} microbatches"
        )
    if candidate is first:
        return ""
    text = _behind(request.objective, candidate, first)
    if candidate.bubble > first.bubble + 0.02:
        text += f"; stages wait {candidate.bubble:.0%} of their busy time"
    if candidate.kept_bytes is not None and candidate.kept_bytes != first.kept_bytes:
        remat, size = candidate.kept_bytes
        text += (
            f"; remat {remat} does not fit: {size / _GIGA:.3g} GB, with {candidate.remat} "
            f"{memory / _GIGA:.3g} GB"
        )
    return text


def _most_of_it(mine: Mapping[str, float], best: Mapping[str, float]) -> str:
    """Return which term is the most above the best candidate's; "" if none is worth a word."""
    more = {n: mine.get(n, 0.0) - best.get(n, 0.0) for n in dict.fromkeys([*mine, *best])}
    worst = max(more, key=lambda n: more[n])
    if more[worst] <= _WORTH * sum(best.values()):
        return ""
    there, here = _s(best.get(worst, 0.0)), _s(mine.get(worst, 0.0))
    return f": {_SAID.get(worst, worst)} {here}, not {there}"


def short(error: str) -> str:
    """Shorten a refusal to the part that does not name a candidate."""
    text = error.partition(": ")[2] or error
    return text.split(".")[0][:100]


def _s(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
