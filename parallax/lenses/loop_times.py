"""The time of one iteration, from two runs of the same loop: what each call adds cancels out."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_REPEATS = 5
_LEAST_S = 2e-3  # shortest run of the longer program, far above the clock's resolution

type Samples = list[float]


def seconds_each(
    loop: Callable[[int], Callable[[], Any]],
    first: int = 4,
    of_all: Callable[[Samples], Samples] = lambda samples: samples,
) -> float:
    """Measure the seconds per iteration of a loop.

    Args:
      loop: number of iterations -> a compiled call of that many, returning arrays to wait for.
      first: iterations to begin with; raised until the longer program lasts 2 ms.
      of_all: this process's times -> those that count, for a loop that several processes run
        together: all have to choose the same number of iterations.
    """
    rounds = first
    while True:
        long = loop(3 * rounds)
        if _median(long, of_all) >= _LEAST_S or rounds >= 1 << 16:
            break
        rounds *= 4
    short = loop(rounds)
    return max(1e-9, (_median(long, of_all) - _median(short, of_all)) / (2 * rounds))


def _median(call: Callable[[], Any], of_all: Callable[[Samples], Samples]) -> float:
    jax.block_until_ready(call())
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(of_all(times)))
