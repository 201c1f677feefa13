"""The fastest run of a strategy: the number of microbatches that fits and takes the least time."""

import math
from dataclasses import dataclass, replace

from parallax.analytic.estimating import Estimate, estimate
from parallax.analytic.memory import estimate_bytes
from parallax.analytic.packed_weights import PackedWeights, weights_of
from parallax.cost import Rates
from parallax.meshes.cluster import Cluster
from parallax.programs.steps import TransformerStep


@dataclass(frozen=True)
class Fastest:
    """One strategy at its best number of microbatches (tag: modelled).

    Attributes:
      estimate: estimate of the whole batch's prefill, or of one decoding step.
      microbatches: the number of microbatches.
      needed_bytes: memory per device.
      steady_s: seconds if other requests kept the pipeline full, which no program here does:
        without its first and last ticks, at the number of microbatches that is best then.
    """

    estimate: Estimate
    microbatches: int
    needed_bytes: float
    steady_s: float


def fastest(
    whole: TransformerStep,
    cluster: Cluster,
    *,
    weights: PackedWeights | None = None,
    rates: Rates | None = None,
) -> Fastest:
    """Find the fastest of several numbers of microbatches, with weights read from L2 if they stay.

    Args:
      whole: a prefill, or a decoding step; its own number of microbatches does not count.
      cluster: the devices.
      weights: how the weights are stored; None is as the config says.
      rates: cost model constants; None uses those shipped for the GPU.

    Raises:
      ValueError: nothing fits a device; says how much memory is needed.

    Cost: about ten milliseconds.
    """
    weights = weights or weights_of(whole.config)
    best, least, steady = None, math.inf, math.inf
    for microbatches in microbatches_of(whole):
        step = whole.with_microbatches(microbatches)
        needed = estimate_bytes(step.held, step.decoder, weights=weights)
        least = min(least, needed)
        if needed > cluster.usable_bytes:
            continue
        one = estimate(step, cluster, weights=weights, rates=rates, resident=True)
        steady = min(steady, one.cost.seconds * steady_share(step))
        if best is None or one.cost.seconds < best.estimate.cost.seconds:
            best = Fastest(one, microbatches, needed, steady)
    if best is None:
        work = whole.workload
        raise ValueError(
            f"strategy '{whole.strategy.name}' with batch {work.batch} x {work.seq_len}: a device "
            f"needs {least / 1e9:.3g} GB, {cluster.usable_bytes / 1e9:.3g} GB are usable. Use a "
            "smaller batch."
        )
    return replace(best, steady_s=steady)


def steady_share(step: TransformerStep) -> float:
    """Compute the ticks per batch of a pipeline kept full, over those of a batch that runs alone.

    A microbatch takes one tick. Where the next call needs this one's results, as a sequence's next
    token does, few microbatches leave gaps until their own next step.
    """
    strategy, microbatches = step.strategy, step.workload.microbatches
    stages = strategy.split().count("layers")
    if stages == 1:
        return 1.0
    ticks, busy = strategy.layers.ticks(microbatches, stages), microbatches
    if step.is_chained:
        busy = max(microbatches, (ticks - microbatches) // (stages - 1) * stages)
    return busy / ticks


def microbatches_of(step: TransformerStep) -> tuple[int, ...]:
    """Return the numbers of microbatches to try, divisors of the sequences per device."""
    split = step.strategy.split()
    stages, local = split.count("layers"), step.workload.batch // split.count("act_batch")
    if step.is_chained:
        tried = (1, 2, 4, 8, stages) if stages > 1 else (1,)
    else:
        few = (1, 4, 16, 64) if stages == 1 else (1, stages, 4 * stages, 16 * stages)
        tried = (*few, math.gcd(local, stages))
    return tuple(sorted({m for m in tried if m <= local and local % m == 0}))
