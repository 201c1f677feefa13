"""The fit of the cost model's constants to measurements of products and collectives.

Residuals are logarithms of ratios, so that small and large shapes weigh alike; the loss is robust,
so that outliers (one slow run) weigh little. Shapes that `is_test` holds out are never fitted.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import least_squares

from parallax.cost.collectives import exchange_seconds, send_seconds
from parallax.cost.gemm import GemmRates, gemm_times
from parallax.cost.measurements import MeasuredCollective, MeasuredGemm, is_test
from parallax.cost.rates import BETWEEN_NODES, LinkRates, Rates, Spread

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "tensorfloat32": 4, "int8": 1}
_LINK_BOUNDS = {
    "start_s": (1e-6, 1e-4), "bytes_per_s": (1e10, 2e12), "step_s": (1e-9, 1e-5),
    "few": (1e-3, 1.0), "extra_s": (1e-8, 1e-3), "half_bytes": (1e4, 1e9),
    "extra_step_s": (1e-9, 1e-4), "early_s": (1e-9, 1e-4), "early_half_bytes": (1e3, 1e6),
}  # fmt: skip
_LINK_BEGIN = {
    "bytes_per_s": 3e11, "step_s": 5e-7, "few": 0.2, "extra_s": 2e-5, "extra_step_s": 5e-7,
    "early_s": 1e-6, "early_half_bytes": 2e4, "switch_share": 0.6,
}  # fmt: skip
# Quantiles of the residuals between which a new row falls four times out of five, with some margin.
_QUANTILES = 0.07, 0.93


def predicted_gemm(rates: GemmRates, row: MeasuredGemm, sm_count: int) -> float:
    """Estimate the seconds of a measured matrix product."""
    return float(predicted_gemms(rates, [row], sm_count)[0])


def predicted_gemms(rates: GemmRates, rows: Sequence[MeasuredGemm], sm_count: int) -> np.ndarray:
    """Estimate the seconds [r] of measured matrix products."""
    return gemm_times(rates, sm_count, *product_sizes(rows))


def product_sizes(rows: Sequence[MeasuredGemm]) -> tuple[np.ndarray, ...]:
    """Return the sizes [r] of measured products, as `gemm_times` takes them."""
    sizes = np.array([(r.batch, r.m, r.n, r.k) for r in rows], float).T
    batch, m, n, k = sizes
    item = np.array([ITEM_BYTES[r.dtype] for r in rows])
    return batch, m, n, k, item * batch * (m * k + k * n + m * n)


def predicted_collective(rates: Rates, row: MeasuredCollective) -> float:
    """Estimate the seconds of a measured collective."""
    if row.kind == "p2p":
        return send_seconds(rates.links["p2p" if row.nodes == 1 else "network"], row.bytes)
    return exchange_seconds(row.kind, row.bytes, row.devices // row.nodes, row.nodes, rates)


def fit_gemm(rows: Sequence[MeasuredGemm], sm_count: int, start: GemmRates) -> GemmRates:
    """Fit the rates of matrix products to measurements.

    Args:
      rows: measurements of one GPU and one kind of operand.
      sm_count: streaming multiprocessors of the GPU.
      start: initial guess; its sustained FLOP/s stay, scaled with the others.
    """
    names = [f.name for f in dataclasses.fields(GemmRates) if f.name != "sustained_flops_per_s"]
    sizes, measured = product_sizes(rows), np.array([r.seconds for r in rows])
    share = start.sustained_flops_per_s / start.flops_per_s
    begin = np.array([getattr(start, n) for n in names])
    # An overlap of less than 1 would be slower than one after the other.
    low = np.log(np.where([n == "overlap" for n in names], 1.0, begin / 8))

    def rates(x: np.ndarray, digits: int = 17) -> GemmRates:
        values = {n: float(f"{v:.{digits}g}") for n, v in zip(names, np.exp(x), strict=True)}
        sustained = float(f"{share * values['flops_per_s']:.4g}")
        return GemmRates(**values, sustained_flops_per_s=sustained)

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.log(gemm_times(rates(x), sm_count, *sizes) / measured)

    fit = least_squares(
        residuals, np.log(begin), loss="soft_l1", f_scale=0.05, diff_step=1e-3,
        bounds=(low - 1e-6, np.log(begin * 8)),
    )  # fmt: skip
    return rates(fit.x, 4)


def fit_link(
    rows: Sequence[MeasuredCollective],
    seconds: Callable[[LinkRates, MeasuredCollective], float],
    *,
    switches: bool = False,
) -> LinkRates:
    """Fit the rates of one kind of collective to measurements.

    Args:
      rows: measurements of one kind, within a node.
      seconds: the model.
      switches: whether the GPU's switches can sum; rows of few devices and of many tell how fast.
    """
    names = [*_LINK_BOUNDS, *(("switch_share",) if switches else ())]
    bounds = _LINK_BOUNDS | {"switch_share": (0.3, 1.2)}
    low, high = (np.log([bounds[name][side] for name in names]) for side in (0, 1))

    def rates(x: np.ndarray, digits: str = "") -> LinkRates:
        values = np.exp(x).tolist()
        if digits:
            values = [float(f"{v:{digits}}") for v in values]
        return dataclasses.replace(LinkRates(0.0, 1.0), **dict(zip(names, values, strict=True)))

    def residuals(x: np.ndarray) -> list[float]:
        link = rates(x)
        return [math.log(seconds(link, r) / r.seconds) for r in rows]

    best = None
    for start_s, half in itertools.product((4e-6, 1.5e-5), (3e5, 1e7)):
        begin = {**_LINK_BEGIN, "start_s": start_s, "half_bytes": half}
        fit = least_squares(
            residuals, np.log([begin[name] for name in names]), loss="soft_l1", f_scale=0.05,
            bounds=(low, high), max_nfev=200,
        )  # fmt: skip
        if best is None or fit.cost < best.cost:
            best = fit
    assert best is not None
    return rates(best.x, ".4g")


def fit_network(rows: Sequence[MeasuredCollective], rates: Rates) -> LinkRates:
    """Fit the start and the rate of one kind of collective between nodes.

    Args:
      rows: measurements of one kind (or of messages, "p2p"), with one device of each node.
      rates: the other constants; their rates between nodes are the initial guess.
    """
    kind = rows[0].kind
    name, start = BETWEEN_NODES.get(kind, "network"), rates.network(kind)
    begin = np.log([start.start_s, start.bytes_per_s])

    def residuals(x: np.ndarray) -> list[float]:
        start_s, rate = np.exp(x).tolist()
        link = LinkRates(start_s, rate)
        tried = dataclasses.replace(rates, links={**rates.links, name: link})
        return [math.log(predicted_collective(tried, r) / r.seconds) for r in rows]

    fit = least_squares(
        residuals, begin, loss="soft_l1", f_scale=0.05,
        bounds=(begin - np.log(1e3), begin + np.log(1e3)),
    )  # fmt: skip
    start_s, rate = (float(f"{v:.4g}") for v in np.exp(fit.x))
    return LinkRates(start_s, rate)


def spread(modelled: Sequence[float], measured: Sequence[float], widen: float = 1.0) -> Spread:
    """Compute the 80 % interval of measured / modelled over the rows that were fitted.

    Args:
      modelled, measured: seconds per row.
      widen: exponent that widens the interval, for constants taken over from another GPU.
    """
    ratio = np.log(np.asarray(measured) / np.asarray(modelled))
    low, high = (float(np.quantile(ratio, q)) * widen for q in _QUANTILES)
    return Spread(round(math.exp(min(low, -0.01)), 3), round(math.exp(max(high, 0.01)), 3))


def split[Row: (MeasuredGemm, MeasuredCollective)](
    rows: Sequence[Row],
) -> tuple[list[Row], list[Row]]:
    """Split rows into (those to fit, those held out) by a hash of the shape."""
    return [r for r in rows if not is_test(r.key)], [r for r in rows if is_test(r.key)]
