"""The confidence interval of measured times."""

import numpy as np
from scipy import stats

from parallax.results.lens_results import Figure

_CONFIDENCE = 0.95


def confidence_interval(samples: list[float]) -> Figure:
    """Compute the mean of samples in seconds, with its 95 % confidence interval."""
    mean = float(np.mean(samples))
    if len(samples) < 2:
        return Figure(mean, "s", "measured", note="one sample: no interval")
    half = stats.t.ppf((1 + _CONFIDENCE) / 2, len(samples) - 1) * stats.sem(samples)
    return Figure(mean, "s", "measured", low=mean - half, high=mean + half,
                  note=f"n={len(samples)}, 95 % CI")  # fmt: skip
