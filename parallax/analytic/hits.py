"""The share of weight reads that the L2 cache serves: a synthetic trace's launches, two ticks.

The cache keeps what was touched last, up to its usable size, and what is larger passes through: the
cost model's own rule, here carried from one tick to the next.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from parallax.cost.pricing import Recent
from parallax.cost.rates import Rates
from parallax.hlo.execution_trace import ExecutionTrace, Kernel, Loop, Start
from parallax.meshes.cluster import Cluster

# Rounds of a loop that are run through; those beyond could only push more out.
_ROUNDS = 64


@dataclass(frozen=True)
class WeightReads:
    """Of one tick, after one before it (tag: modelled).

    Attributes:
      read_bytes: of stored weights.
      hit_bytes: of them, those that are in the L2 cache.
      resident: arrays of which every layer finds bytes in the cache.
    """

    read_bytes: float
    hit_bytes: float
    resident: dict[str, float]

    @property
    def hit_rate(self) -> float:
        return self.hit_bytes / self.read_bytes if self.read_bytes else 0.0


def weight_reads(work: ExecutionTrace, cluster: Cluster, rates: Rates) -> WeightReads:
    """The reads of layers' weights in a steady tick of a synthetic trace.

    Args:
      work: the synthetic trace of an `Estimate`.
      cluster, rates: its GPU.
    """
    cache = Recent(rates.l2_share * cluster.gpu.l2_bytes)
    stored = _weight_bytes(work, "tick")
    if stored > cache.capacity:  # each is pushed out by the others before its turn comes again
        return WeightReads(stored, 0.0, {})
    read = hit = 0.0
    least: dict[str, float] = {}
    for tick in range(2):
        for kernel, layer in _launches(work, "tick", ()):
            for name, size in kernel.reads:
                own = name
                if name in kernel.weights:
                    own = f"{name}@{layer}"
                elif name in kernel.kv_cache:  # of each layer and of each microbatch its own
                    own = f"{name}@{layer}@{tick}"
                in_cache = min(size, cache.held.get(own, 0.0))
                if tick and name in kernel.weights:
                    read, hit = read + size, hit + in_cache
                    least[name] = min(least.get(name, math.inf), in_cache)
                cache.touch(own, size)
            cache.touch(kernel.name, kernel.written_bytes)
    return WeightReads(read, hit, {name: size for name, size in least.items() if size})


def _launches(
    work: ExecutionTrace, name: str, at: tuple[int, ...]
) -> Iterator[tuple[Kernel, tuple]]:
    """Kernels in order, each with the rounds of the loops around it whose arrays differ."""
    for step in work.steps[name]:
        if isinstance(step, Kernel):
            yield step, at
        elif isinstance(step, Start) and isinstance(step.what, Kernel):
            yield step.what, at
        elif isinstance(step, Loop):
            # Rounds without weights of their own touch the same arrays again.
            rounds = math.ceil(step.count) if _weight_bytes(work, step.body) else 1
            for i in range(min(_ROUNDS, rounds)):
                yield from _launches(work, step.body, at if step.same_weights else (*at, i))


def _weight_bytes(work: ExecutionTrace, name: str) -> float:
    total = 0.0
    for step in work.steps[name]:
        if isinstance(step, Loop):
            rounds = 1 if step.same_weights else math.ceil(step.count)
            total += rounds * _weight_bytes(work, step.body)
        elif isinstance(step, Kernel):
            total += sum(size for read, size in step.reads if read in step.weights)
    return total
