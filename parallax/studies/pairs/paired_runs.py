"""Comparison of two callables' speed by pairs: both run in each pair, in a random order.

Slow drift (clocks, temperature, other processes) affects both runs of a pair alike and cancels in
their ratio; effects of the order (caches, allocators) average out.
"""

import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from parallax.distributed.agreement import from_first, together
from parallax.distributed.devices import node_notes
from parallax.lenses.child import Progress
from parallax.lenses.measuring import mesh_at_hand, on_devices
from parallax.lenses.process_times import (
    of_all_processes,
    process_times,
    slowest_samples,
    together_on,
)
from parallax.models.config import ModelConfig
from parallax.programs.steps import make_step
from parallax.results.lens_results import Figure, ProcessTime
from parallax.strategy import Strategy
from parallax.workload import Workload

_CONFIDENCE = 0.95
_WARM_UPS = 2
LEAST_PAIRS = 2


@dataclass(frozen=True)
class PairedRuns:
    """The times of paired runs (tag: measured).

    Attributes:
      first_s, second_s: seconds of the two callables in each pair, of the slowest process.
      first_ran_first: whether the first callable ran first, in each pair.
      ratio: second over first: the geometric mean of the pairs' ratios with its 95 % interval.
      first_processes, second_processes: each process's own mean times; () for one process.
    """

    first_s: tuple[float, ...]
    second_s: tuple[float, ...]
    first_ran_first: tuple[bool, ...]
    ratio: Figure
    first_processes: tuple[ProcessTime, ...] = ()
    second_processes: tuple[ProcessTime, ...] = ()

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
    begin: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> PairedRuns:
    """Time two callables against each other; with several processes all have to call it.

    Args:
      first, second: the callables; each is called twice to warm up, and once per pair.
      pairs: number of pairs, at least 2.
      seed: seed of the orders: the first one runs first in a random half of the pairs.
      wait: blocks until a call's result is ready, such as jax.block_until_ready; timed too.
      begin: runs before each timed call and is not timed: brings all processes to one point.
      clock: returns seconds.

    Raises:
      ValueError: fewer than two pairs, for which there is no interval.

    Cost: pairs + 2 calls of each.
    """
    if pairs < LEAST_PAIRS:
        raise ValueError(f"run_pairs: an interval needs at least {LEAST_PAIRS} pairs, got {pairs}.")
    orders = _orders(pairs, seed)
    for _ in range(_WARM_UPS):
        wait(first())
        wait(second())

    def timed(call: Callable[[], Any]) -> float:
        begin()
        start = clock()
        wait(call())
        return clock() - start

    times: tuple[list[float], list[float]] = [], []
    for first_goes_first in orders:
        for which in (0, 1) if first_goes_first else (1, 0):
            times[which].append(timed((first, second)[which]))
    rows = [of_all_processes("the times of the pairs", own) for own in times]
    slowest = [slowest_samples(row) for row in rows]
    return PairedRuns(
        tuple(slowest[0]), tuple(slowest[1]), tuple(orders), paired_ratio(*slowest),
        process_times(rows[0]), process_times(rows[1]),
    )  # fmt: skip


def _orders(pairs: int, seed: int) -> list[bool]:
    """Return whether the first callable goes first, in each pair: process 0's, on all processes."""
    orders = np.random.default_rng(seed).permutation(np.arange(pairs) % 2 == 0)
    return json.loads(from_first("the orders of the pairs", json.dumps(orders.tolist())))


def measure_pairs(
    config: ModelConfig,
    strategies: tuple[Strategy, Strategy],
    workloads: tuple[Workload, Workload],
    text: bytes,
    pairs: int,
    seed: int = 0,
    *,
    on_progress: Progress = lambda line: None,
) -> tuple[PairedRuns, str, tuple[str, ...]]:
    """Time forward passes of one model under two strategies on the devices at hand, in pairs.

    Args:
      config: the model of both.
      strategies, workloads: the two sides; there must be enough devices for each.
      text: enough bytes for a batch.
      pairs, seed: as in `run_pairs`.

    Returns:
      The runs, the device kind, and notes on the meshes over several nodes.

    Raises:
      ValueError: too few devices or pairs, or a process without a device in a mesh.
    """
    on_progress(f"{strategies[0].name} against {strategies[1].name}: {pairs} pairs")
    what = "compiling both strategies"
    meshes = together(what, lambda: [mesh_at_hand(strategy) for strategy in strategies])
    steps = together(
        what,
        lambda: [
            on_devices(make_step(config, strategy, workload), mesh, text)
            for strategy, workload, mesh in zip(strategies, workloads, meshes, strict=True)
        ],
    )
    calls = [functools.partial(step, *arguments) for step, arguments in steps]
    begin = together_on(max(meshes, key=lambda mesh: mesh.size))
    runs = run_pairs(calls[0], calls[1], pairs, seed=seed, wait=jax.block_until_ready, begin=begin)
    notes = tuple(
        f"{strategy.name}: {note}"
        for strategy, mesh in zip(strategies, meshes, strict=True)
        for note in node_notes(mesh)
    )
    return runs, meshes[0].devices.flat[0].device_kind, notes


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
