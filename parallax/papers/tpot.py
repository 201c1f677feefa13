"""The readings of a printed "time per output token", each worked out."""

from parallax.papers.derivations.speed import inverse_tps_ms, most_overhead_ms
from parallax.papers.limits import tps_limit
from parallax.papers.paper import Given
from parallax.papers.results import TpotReading

# A figure this close to a reading is taken to be that reading.
_NEAR = 0.025


def tpot_readings(given: Given) -> tuple[TpotReading, ...]:
    """Work out every reading of a TPOT claim, from the paper's own TPS and the machine."""
    printed, inverse = given.claim.value, inverse_tps_ms(given)
    most = most_overhead_ms(given)
    # Each step yields one token per sequence; no step is shorter than the machine allows.
    step = given.workload.batch * inverse
    limit = tps_limit(given.paper, given.claim.strategy, "decode", given.cluster)
    least = 1e3 * limit.tokens / limit.tokens_per_s

    def near(value: float) -> bool:
        return abs(printed / value - 1) <= _NEAR

    return (
        TpotReading("inv_tps", inverse, f"1/TPS: {inverse:.3g} ms", near(inverse)),
        TpotReading(
            "inv_tps_us_printed_ms", 1e3 * inverse,
            f"1/TPS in us: {1e3 * inverse:.3g}", near(1e3 * inverse),
        ),
        TpotReading(
            "sync_overhead_per_token", most,
            f"overhead a token: at most {most:.3g} ms on all devices", printed <= most,
        ),
        TpotReading(
            "request", step,
            f"of a request that decodes: batch/TPS is {step:.3g} ms; a step takes at least "
            f"{least:.3g} ms" + ("" if limit.fits else ", and the KV cache does not fit"),
            near(step) and printed >= least and limit.fits,
        ),
    )  # fmt: skip
