"""The share of weight reads that the L2 cache serves, over two ticks of a synthetic trace.

The cache keeps the arrays touched last, up to its usable size, and larger ones pass through: the
cost model's own rule, here carried over from one tick to the next.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from parallax.cost.rates import Rates
from parallax.cost.recent import Recent
from parallax.hlo.execution_trace import ExecutionTrace, Kernel, Loop, Start
from parallax.meshes.cluster import Cluster

# Iterations of a loop that are simulated; further ones could only evict more.
_ITERATIONS = 64


@dataclass(frozen=True)
class WeightReads:
    """The weight reads of one tick that follows another (tag: modelled).

    Attributes:
      read_bytes: bytes of stored weights that are read.
      hit_bytes: those of them that are in the L2 cache.
      resident: array -> bytes of it that every layer finds in the cache.
    """

    read_bytes: float
    hit_bytes: float
    resident: dict[str, float]

    @property
    def hit_rate(self) -> float:
        return self.hit_bytes / self.read_bytes if self.read_bytes else 0.0


def weight_reads(work: ExecutionTrace, cluster: Cluster, rates: Rates) -> WeightReads:
    """Count the reads of layers' weights in a steady tick of a synthetic trace.

    Args:
      work: the synthetic trace of an `Estimate`.
      cluster, rates: the GPU and its cost model constants.
    """
    cache = Recent(rates.l2_share * cluster.gpu.l2_bytes)
    stored = _weight_bytes(work, "tick")
    if stored > cache.capacity:  # each weight is evicted by the others before it is read again
        return WeightReads(stored, 0.0, {})
    read = hit = 0.0
    least: dict[str, float] = {}
    for tick in range(2):
        for kernel, layer in _launches(work, "tick", ()):
            for name, size in kernel.reads:
                own = name
                if name in kernel.weights:
                    own = f"{name}@{layer}"
                elif name in kernel.kv_cache:  # every layer and microbatch has its own
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
    """Yield kernels in order, each with the iterations of the loops that give it other weights."""
    for step in work.steps[name]:
        if isinstance(step, Kernel):
            yield step, at
        elif isinstance(step, Start) and isinstance(step.what, Kernel):
            yield step.what, at
        elif isinstance(step, Loop):
            # Iterations without weights of their own touch the same arrays again.
            iterations = math.ceil(step.count) if _weight_bytes(work, step.body) else 1
            for i in range(min(_ITERATIONS, iterations)):
                yield from _launches(work, step.body, at if step.same_weights else (*at, i))


def _weight_bytes(work: ExecutionTrace, name: str) -> float:
    total = 0.0
    for step in work.steps[name]:
        if isinstance(step, Loop):
            iterations = 1 if step.same_weights else math.ceil(step.count)
            total += iterations * _weight_bytes(work, step.body)
        elif isinstance(step, Kernel):
            total += sum(size for read, size in step.reads if read in step.weights)
    return total
