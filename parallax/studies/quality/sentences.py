"""Sentences that set the measured figures beside the paper's claims."""

from collections.abc import Sequence

from parallax.results.lens_results import Figure
from parallax.studies.quality.results import MatrixError, Race, Score

CANNOT = (
    "A model this small can neither confirm nor refute a figure for a 4096-wide one: how much a "
    "format costs depends on width, data and length of training."
)


def sentences(
    scores: Sequence[Score], race: Race | None, errors: Sequence[MatrixError]
) -> tuple[str, ...]:
    """Return a sentence per claim, and one on how far the measurements apply."""
    said = [CANNOT]
    rows = [s for s in scores if s.label == "paper's"]
    for score in rows:
        how = "after tuning, float16 tuned alike" if score.tuned else "as it was trained"
        said.append(
            "Claimed: perplexity worsens by less than 0.1 % (INT8, 50 % sparse MLP). Measured "
            f"here, {how}: {percent(score.increase)}, which is {_against(score.increase, 0.1)}."
        )
    int8 = [s for s in scores if s.label == "int8" and not s.tuned]
    for score in int8:
        said.append(
            "Claimed: per-channel scaling maintains 99.5 % accuracy (of what, the paper does not "
            f"say). Measured here for INT8 alone: the likeliest next byte is float16's at "
            f"{share(score.agreement)} of places, and the task changes by "
            f"{points(score.accuracy_change)}."
        )
    for score in rows:
        how = ", tuned" if score.tuned else ""
        said.append(
            "Claimed: no significant loss on downstream tasks. Measured here on one task"
            f"{how}: {points(score.accuracy_change)} against float16; "
            + ("an interval that holds 0." if _holds(score.accuracy_change, 0.0)
               else "an interval without 0.")
        )  # fmt: skip
    if race is not None:
        same = "holds" if _holds(race.ratio, 1.0) else "does not hold"
        said.append(
            "Claimed: training converges in the same number of steps. Measured here to "
            f"{race.target_nats:.3f} nats a byte: {interval(race.ratio, 2)} times the steps "
            f"({race.ratio.note}); the interval {same} 1."
        )
    for weights, name in (("trained", "the trained model"), ("normal", "normal weights at 4096")):
        of_weights = [e.error for e in errors if (e.weights, e.format) == (weights, "int8")]
        if of_weights:
            said.append(
                f"INT8, one scale an output channel: the worst matrix of {name} is off by "
                f"{max(of_weights):.2e} relative L2, of {len(of_weights)}; the limit is 1e-2."
            )
    return tuple(said)


def interval(figure: Figure, digits: int, scale: float = 1.0) -> str:
    """Format a figure as `value [low, high]`."""
    value = f"{figure.value * scale:.{digits}f}"
    if figure.low is None or figure.high is None:
        return value
    return f"{value} [{figure.low * scale:.{digits}f}, {figure.high * scale:.{digits}f}]"


def percent(figure: Figure) -> str:
    """Format a change in per cent, with its sign and interval."""
    return _signed(figure, "%")


def points(figure: Figure) -> str:
    """Format a change in percentage points, with its sign and interval."""
    return _signed(figure, "points")


def share(figure: Figure) -> str:
    """Format a share in per cent, with its interval."""
    return f"{interval(figure, 2, 100)} %"


def _signed(figure: Figure, unit: str) -> str:
    digits = 2 if abs(figure.value) < 10 else 1
    low, high = figure.low, figure.high
    value = f"{figure.value:+.{digits}f}"
    if low is None or high is None:
        return f"{value} {unit}"
    return f"{value} [{low:+.{digits}f}, {high:+.{digits}f}] {unit}"


def _against(figure: Figure, limit: float) -> str:
    low, high = figure.low, figure.high
    if high is not None and high < limit:
        return f"below {limit:g} %"
    if low is not None and low > limit:
        return f"above {limit:g} %"
    return f"not told apart from {limit:g} %"


def _holds(figure: Figure, value: float) -> bool:
    return figure.low is not None and figure.high is not None and figure.low <= value <= figure.high
