"""The claims audit as rows of words: what every output of it shows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from parallax.papers.paper import Claim, Verdict
from parallax.papers.results import VERDICTS, Audited, Limit, ReadTps
from parallax.report import words

HEADS = ("line", "figure", "claimed", "derived", "verdict", "reason")
_GOOD = ("consistent", "rounding")
_RELATIONS = {"equals": "", "at most": "at most ", "at least": "at least "}


@dataclass(frozen=True)
class AuditRow:
    """One figure of a paper, in words.

    Attributes:
      lines: line numbers in the paper's text.
      figure: the strategy and the quantity.
      claimed, derived, verdict: as a table shows them; "-" where nothing can be derived.
      status: "good", "bad" or "none" (nothing to judge it by).
      reason: what the verdict rests on.
      more: the readings of a TPS or TPOT, one per line.
    """

    lines: str
    figure: str
    claimed: str
    derived: str
    verdict: str
    status: str
    reason: str
    more: tuple[str, ...]


def audit_rows(audited: Iterable[Audited]) -> tuple[AuditRow, ...]:
    """Return one row per figure, in the order given."""
    return tuple(_row(a) for a in audited)


def counts(audited: Iterable[Audited]) -> dict[Verdict, int]:
    """Count the claims that have each verdict, in the order of VERDICTS, zeros included."""
    seen = Counter(a.verdict for a in audited)
    return {verdict: seen[verdict] for verdict in VERDICTS}


def counts_line(audited: Iterable[Audited]) -> str:
    """Return e.g. "9 figures: 4 consistent, 2 arithmetic error", without verdicts of no figure."""
    audited = tuple(audited)
    each = ", ".join(f"{n} {verdict}" for verdict, n in counts(audited).items() if n)
    return f"{len(audited)} figures: {each}"


def _row(a: Audited) -> AuditRow:
    claim = a.claim
    status = "good" if a.verdict in _GOOD else "bad"
    if a.verdict == "not derivable from the text":
        status = "none"
    return AuditRow(
        lines=", ".join(map(str, claim.lines)),
        figure=f"{claim.strategy}: {claim.quantity}" if claim.strategy else claim.quantity,
        claimed=f"{claim.printed} {claim.unit}",
        derived=_derived(a),
        verdict=_verdict(a),
        status=status,
        reason=claim.reason,
        more=(
            *(() if a.implied is None else (_implied(a.implied),)),
            *(_tps_line(claim, r) for r in a.tps),
            *((a.elsewhere,) if a.elsewhere else ()),
            *(f"{r.says}{' (possible)' if r.possible else ''}" for r in a.tpot),
        ),
    )


def _derived(a: Audited) -> str:
    if a.derived is None:
        return "-"
    if a.tps:
        return f"at most {words.in_tokens_per_s(a.derived)}"
    return f"{_RELATIONS[a.claim.relation]}{words.digits(a.derived, 4)} {a.claim.unit}"


def _verdict(a: Audited) -> str:
    """Return the verdict, with the factor it is off by where that is meaningful."""
    if a.off_by is None or a.verdict in _GOOD:
        return a.verdict
    if a.tps and a.verdict == "contradicts another claim":
        return a.verdict  # what it contradicts is another claim, not its limit
    return f"{a.verdict} {_times(a.off_by)}" if "off by" in a.verdict else (
        f"{a.verdict}, {_times(a.off_by)}"
    )  # fmt: skip


def _times(ratio: float) -> str:
    """Return the factor as a number of at least one: half as large is "2x too small"."""
    big = max(ratio, 1 / ratio)
    said = f"{float(f'{big:.2g}'):,g}x"
    return said if ratio >= 1 else f"{said} too small"


def _tps_line(claim: Claim, r: ReadTps) -> str:
    """Return e.g. "prefill: 54 % of what compute allows (at most 2.23M tokens/s)"."""
    limit = r.limit
    ratio = claim.value / limit.tokens_per_s
    share = words.percent(ratio) if ratio <= 1 else words.times(ratio)
    text = (
        f"{limit.reading}: {share} {'of ' if ratio <= 1 else ''}what {_TERMS[limit.set_by]} allows "
        f"(at most {words.in_tokens_per_s(limit.tokens_per_s)})"
    )
    if not limit.fits:
        text += f"; {_room(limit)}"
    if r.modelled is not None:
        low, high = r.modelled.low, r.modelled.high
        bar = "" if low is None or high is None else (
            f", {words.in_tokens_per_s(low)} to {words.in_tokens_per_s(high)}"
        )  # fmt: skip
        text += f"; modelled {words.in_tokens_per_s(r.modelled.value)}{bar}"
    return text


def _implied(tokens_per_s: float) -> str:
    return f"its figure at equal FLOP/s is {words.in_tokens_per_s(tokens_per_s)} here"


_TERMS = {"compute": "compute", "HBM": "HBM", "NVLink": "NVLink", "network": "the network"}


def _room(limit: Limit) -> str:
    return (
        f"weights and KV cache are {words.in_bytes(limit.held_bytes)}, "
        f"the GPUs hold {words.in_bytes(limit.room_bytes)}"
    )
