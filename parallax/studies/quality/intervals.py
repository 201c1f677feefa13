"""95 % intervals of means, of perplexities and of ratios; differences are paired."""

import numpy as np

from parallax.results.lens_results import Figure

_RESAMPLES = 2000


def mean_interval(values: np.ndarray, unit: str, scale: float = 1.0, seed: int = 0) -> Figure:
    """Compute the mean of independent observations with a 95 % bootstrap interval.

    Args:
      values: one per observation, or differences of paired ones: pairs are resampled together.
      unit: unit of the mean times `scale`.

    Reference: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993 (percentiles).
    """
    low, high = np.percentile(_means(values, seed), [2.5, 97.5])
    return Figure(
        float(np.mean(values) * scale), unit, "measured", float(low * scale), float(high * scale)
    )


def exp_interval(values: np.ndarray, unit: str, *, growth: bool = False, seed: int = 0) -> Figure:
    """Compute exp of the mean with its interval: the perplexity of values in nats.

    Args:
      growth: values are differences; return by how many per cent the perplexity is higher.
    """

    def transform(x):
        return float(100 * np.expm1(x) if growth else np.exp(x))

    low, high = np.percentile(_means(values, seed), [2.5, 97.5])
    return Figure(transform(np.mean(values)), unit, "measured", transform(low), transform(high))


def ratio_interval(ratios: np.ndarray) -> Figure:
    """Compute the geometric mean of a few ratios, with Student's 95 % interval of the logarithms.

    Raises:
      ValueError: ratios that are not positive.
    """
    from scipy import stats

    ratios = np.asarray(ratios, float)
    if not len(ratios) or not bool((ratios > 0).all()):
        raise ValueError(f"ratios must be positive, got {ratios.tolist()}.")
    logs = np.log(ratios)
    middle = float(logs.mean())
    if len(logs) < 2:
        return Figure(float(np.exp(middle)), "1", "measured", note="one seed: no interval")
    half = float(stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs))
    return Figure(
        float(np.exp(middle)), "1", "measured", float(np.exp(middle - half)),
        float(np.exp(middle + half)), f"{len(logs)} seeds, Student's t on logarithms",
    )  # fmt: skip


def _means(values: np.ndarray, seed: int) -> np.ndarray:
    """Compute the means of bootstrap resamples of the observations."""
    values = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    return values[rng.integers(0, len(values), (_RESAMPLES, len(values)))].mean(1)
