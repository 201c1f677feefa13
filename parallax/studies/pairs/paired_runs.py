"""Comparison of two callables' speed by pairs: both run in each pair, in a random order.

Slow drift (clocks, temperature, other processes) affects both runs of a pair alike and cancels in
their ratio; effects of the order (caches, allocators) average out.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from parallax.lenses.child import Progress
from parallax.lenses.measuring import mesh_at_hand, on_devices
from parallax.models.config import ModelConfig
from parallax.programs.steps import make_step
from parallax.results.lens_results import Figure
from parallax.strategy import Strategy
from parallax.workload import Workload

_CONFIDENCE = 0.95
_WARM_UPS = 2
LEAST_PAIRS = 2


@dataclass(frozen=True)
class PairedRuns:
    """The times of paired runs (tag: measured).

    Attributes:
      first_s, second_s: seconds of the two callables in each pair.
      first_ran_first: whether the first callable ran first, in each pair.
      ratio: second over first: the geometric mean of the pairs' ratios with its 95 % interval.
    """

    first_s: tuple[float, ...]
    second_s: tuple[float, ...]
    first_ran_first: tuple[bool, ...]
    ratio: Figure

    @property
    def decided(self) -> bool:
        """Whether the interval excludes 1."""
        low, high = self.ratio.low, self.ratio.high
        return low is not None and high is not None and not low <= 1 <= high


def run_pairs(
    first: Callable[[], Any],
    second: Callable[[], Any],
    pairs: int,
    *,
    seed: int = 0,
    wait: Callable[[Any], Any] = lambda found: found,
    clock: Callable[[], float] = time.perf_counter,
) -> PairedRuns:
    """Time two callables against each other.

    Args:
      first, second: the callables; each is called twice to warm up, and once per pair.
      pairs: number of pairs, at least 2.
      seed: seed of the orders: the first one runs first in a random half of the pairs.
      wait: blocks until a call's result is ready, such as jax.block_until_ready; timed too.
      clock: returns seconds.

    Raises:
      ValueError: fewer than two pairs, for which there is no interval.

    Cost: pairs + 2 calls of each.
    """
    if pairs < LEAST_PAIRS:
        raise ValueError(f"run_pairs: an interval needs at least {LEAST_PAIRS} pairs, got {pairs}.")
    for _ in range(_WARM_UPS):
        wait(first())
        wait(second())

    def timed(call: Callable[[], Any]) -> float:
        start = clock()
        wait(call())
        return clock() - start

    orders = np.random.default_rng(seed).permutation(np.arange(pairs) % 2 == 0)
    times: tuple[list[float], list[float]] = [], []
    for first_goes_first in orders:
        for which in (0, 1) if first_goes_first else (1, 0):
            times[which].append(timed((first, second)[which]))
    return PairedRuns(
        tuple(times[0]), tuple(times[1]), tuple(map(bool, orders)), paired_ratio(*times)
    )


def measure_pairs(
    config: ModelConfig,
    strategies: tuple[Strategy, Strategy],
    workloads: tuple[Workload, Workload],
    text: bytes,
    pairs: int,
    seed: int = 0,
    *,
    on_progress: Progress = lambda line: None,
) -> tuple[PairedRuns, str]:
    """Time forward passes of one model under two strategies on the local devices, in pairs.

    Args:
      config: the model of both.
      strategies, workloads: the two sides; there must be enough devices for each.
      text: enough bytes for a batch.
      pairs, seed: as in `run_pairs`.

    Returns:
      The runs, and the device kind.

    Raises:
      ValueError: too few devices or pairs.
    """
    on_progress(f"{strategies[0].name} against {strategies[1].name}: {pairs} pairs")
    meshes = [mesh_at_hand(strategy) for strategy in strategies]
    steps = [
        on_devices(make_step(config, strategy, workload), mesh, text)
        for strategy, workload, mesh in zip(strategies, workloads, meshes, strict=True)
    ]
    calls = [functools.partial(step, *arguments) for step, arguments in steps]
    runs = run_pairs(calls[0], calls[1], pairs, seed=seed, wait=jax.block_until_ready)
    return runs, meshes[0].devices.flat[0].device_kind


def paired_ratio(first_s: ArrayLike, second_s: ArrayLike) -> Figure:
    """Compute the geometric mean of second/first over pairs, with a 95 % interval.

    The interval is Student's t of the logarithms: with these a ratio and its inverse are equally
    far from 1, and a factor that both runs of a pair share cancels.

    Args:
      first_s, second_s: seconds of each pair, in the same order.

    Raises:
      ValueError: no pairs, or times that are not above 0.
    """
    first, second = (np.asarray(x, np.float64) for x in (first_s, second_s))
    if first.shape != second.shape or first.ndim != 1 or len(first) < LEAST_PAIRS:
        raise ValueError(
            f"paired_ratio: expected equally many times of both, at least {LEAST_PAIRS}; got "
            f"{first.size} and {second.size}."
        )
    if not (np.minimum(first, second) > 0).all():
        raise ValueError("paired_ratio: every time must be above 0 seconds.")
    logs = np.log(second) - np.log(first)
    middle, n = float(np.mean(logs)), len(logs)
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1) * stats.sem(logs))
    return Figure(
        math.exp(middle), "1", "measured", math.exp(middle - half), math.exp(middle + half),
        f"{n} pairs, geometric mean, 95 % CI",
    )  # fmt: skip
