"""The audit: every figure of a paper against its derived value and the machine's limits."""

from collections.abc import Callable

from parallax.meshes.cluster import Cluster, cluster
from parallax.papers.limits import TPS_READINGS, tps_limit
from parallax.papers.paper import Claim, Given, Paper, Verdict
from parallax.papers.results import Audited, ReadTps, TpsReading
from parallax.papers.tpot import tpot_readings
from parallax.results.lens_results import Figure

_OTHER_CLUSTER = "h100_nvl16"  # what --cluster=h100_2x8 is compared with

# (paper, strategy, "prefill" or "decode") -> tokens/s with its error bar; None where it has none.
Model = Callable[[Paper, str, TpsReading], Figure | None]

# Two papers' throughputs at equal FLOP/s contradict each other if their ratio is above this.
_APART = 1.5
# Slack for binary fractions, so that half of 0.1 does not fail by the last bit.
_SLACK = 1e-9


def audit(
    paper: Paper,
    model: Model | None = None,
    *,
    on: Cluster | None = None,
) -> tuple[Audited, ...]:
    """Judge every figure of a paper, in the order of its lines.

    Args:
      paper: the paper whose claims are judged.
      model: tokens/s of a strategy of the paper, prefill or decode; None leaves a throughput's
        verdict to its physical bound.
      on: the machine; None is the paper's cluster.

    Cost: closed forms, some tenths of a second; nothing is compiled. The first call imports JAX and
      Flax, and traces one abstract layer.
    """
    machine = cluster(paper.cluster) if on is None else on
    audited = (_audited(Given(paper, claim, machine), model) for claim in paper.claims)
    return tuple(sorted(audited, key=lambda a: a.claim.lines[0]))


def judge(claim: Claim, derived: float | None) -> Verdict:
    """Judge a claim against one derived number, in the claim's unit."""
    if derived is None:
        return "not derivable from the text"
    off = claim.value - derived
    step = claim.last_digit * (1 + _SLACK)
    if claim.relation == "at most":
        return "consistent" if off <= step / 2 else claim.otherwise
    if claim.relation == "at least":
        return "consistent" if off >= -step / 2 else claim.otherwise
    if abs(off) <= step / 2:
        return "consistent"
    return "rounding" if abs(off) <= step else claim.otherwise


def _audited(given: Given, model: Model | None) -> Audited:
    claim = given.claim
    if claim.reading == "tps":
        return _throughput(given, model)
    derived = None if claim.derive is None else claim.derive(given)
    tpot = tpot_readings(given) if claim.quantity == "TPOT" else ()
    return Audited(claim, derived, judge(claim, derived), claim.reason, tpot=tpot)


def _throughput(given: Given, model: Model | None) -> Audited:
    claim, paper = given.claim, given.paper
    readings = tuple(_read(given, reading, model) for reading in TPS_READINGS)
    best = max((r.limit for r in readings), key=lambda limit: limit.tokens_per_s)
    implied = None if claim.derive is None else claim.derive(given)
    verdict = _tps_verdict(claim, readings, implied)
    elsewhere = ""
    if given.cluster.name == paper.cluster and given.cluster.name != _OTHER_CLUSTER:
        other = Given(paper, claim, cluster(_OTHER_CLUSTER))
        there = tuple(_read(other, reading, None) for reading in TPS_READINGS)
        elsewhere = _change(readings, there, claim)
    return Audited(
        claim, best.tokens_per_s, verdict, claim.reason, implied, readings, elsewhere=elsewhere
    )


def _read(given: Given, reading: TpsReading, model: Model | None) -> ReadTps:
    claim = given.claim
    limit = tps_limit(given.paper, claim.strategy, reading, given.cluster)
    modelled = None if model is None else model(given.paper, claim.strategy, reading)
    too_fast = claim.value - claim.last_digit / 2 > limit.tokens_per_s
    return ReadTps(limit, modelled, too_fast or not limit.fits)


def _tps_verdict(claim: Claim, readings: tuple[ReadTps, ...], implied: float | None) -> Verdict:
    """Judge a throughput: impossible under all readings, else by the first possible modelled."""
    possible = [r for r in readings if not r.beyond]
    if not possible:
        return "beyond the physical bound"
    modelled = next((r.modelled for r in possible if r.modelled is not None), None)
    if modelled is not None:
        half = claim.last_digit / 2
        low = modelled.value if modelled.low is None else modelled.low
        high = modelled.value if modelled.high is None else modelled.high
        return "consistent" if low - half <= claim.value <= high + half else "modelled, off by"
    if implied is not None and not 1 / _APART <= claim.value / implied <= _APART:
        return "contradicts another claim"
    return "consistent"


def _change(here: tuple[ReadTps, ...], there: tuple[ReadTps, ...], claim: Claim) -> str:
    """Describe what another interconnect changes: readings that become possible or impossible."""
    said = []
    for a, b in zip(here, there, strict=True):
        if a.beyond != b.beyond:
            share = 100 * claim.value / b.limit.tokens_per_s
            state = "is beyond the bound" if b.beyond else "is possible"
            said.append(
                f"on {_OTHER_CLUSTER} the {b.limit.reading} reading {state}: "
                f"{share:.0f} % of what {b.limit.set_by} allows"
            )
    return "; ".join(said)
