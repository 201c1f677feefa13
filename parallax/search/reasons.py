"""The reason why a candidate is not the first, in one line."""

from parallax.meshes.cluster import Cluster
from parallax.search.results import Candidate, SearchRequest

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
    # An analytical estimate is compared with the winner's own, not with its compiled program.
    mine_timing, best_timing = candidate.timing, first.timing
    if candidate.compiled is None:
        best_timing = first.closed_form
    mine, best = mine_timing.terms_s, best_timing.terms_s
    total = sum(best.values())
    more = {n: mine.get(n, 0.0) - best.get(n, 0.0) for n in dict.fromkeys([*mine, *best])}
    worst = max(more, key=lambda n: more[n])
    ratio = mine_timing.score(request.objective) / best_timing.score(request.objective)
    text = f"{ratio:.3g}x the first's"
    if more[worst] > _WORTH * total:
        there, here = _s(best.get(worst, 0.0)), _s(mine.get(worst, 0.0))
        text += f": {_SAID.get(worst, worst)} {here}, not {there}"
    if candidate.bubble > first.bubble + 0.02:
        text += f"; stages idle {candidate.bubble:.0%} more ticks than microbatches"
    if candidate.padded > first.padded + 0.02:
        text += f"; {candidate.padded:.0%} of its layers pad shorter stages"
    return text


def _s(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
