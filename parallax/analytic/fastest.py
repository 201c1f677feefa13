"""A strategy at its best: the microbatches that fit a device and take the least time."""

import math
from dataclasses import dataclass, replace

from parallax.analytic.estimating import Estimate, estimate
from parallax.analytic.memory import estimate_bytes
from parallax.analytic.packed_weights import PackedWeights, weights_of
from parallax.cost import Rates
from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.programs.steps import TransformerStep, make_step
from parallax.rules import Phase
from parallax.strategy import Strategy
from parallax.workload import Workload


@dataclass(frozen=True)
class Fastest:
    """One strategy at one place (tag: modelled).

    Attributes:
      estimate: of the whole batch's prefill, or of one decoding step.
      microbatches: that were taken.
      needed_bytes: per device.
      steady_s: seconds if a pipeline were kept full by other requests, which no program here does:
        without its first and last ticks, at the number of microbatches that is best then.
    """

    estimate: Estimate
    microbatches: int
    needed_bytes: float
    steady_s: float


def fastest(
    config: ModelConfig,
    strategy: Strategy,
    cluster: Cluster,
    phase: Phase,
    batch: int,
    seq_len: int,
    *,
    weights: PackedWeights | None = None,
    rates: Rates | None = None,
) -> Fastest:
    """The best of some numbers of microbatches, weights read from the L2 cache where they stay.

    Args:
      phase: "prefill", of batch x seq_len tokens, or "decode", a token more for each sequence of
        that many.
      weights: how they are stored; None is as the config says.

    Raises:
      ValueError: sizes that do not divide, or nothing that fits a device; says how much is missing.

    Cost: some ten milliseconds.
    """
    workload = Workload(batch, seq_len)
    whole = make_step(config, strategy, workload, phase).with_microbatches(1)
    weights = weights or weights_of(config)
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
        raise ValueError(
            f"strategy '{strategy.name}' with batch {batch} x {seq_len}: a device needs "
            f"{least / 1e9:.3g} GB, {cluster.usable_bytes / 1e9:.3g} GB are usable. Use a smaller "
            "batch."
        )
    return replace(best, steady_s=steady)


def steady_share(step: TransformerStep) -> float:
    """Ticks that one of many batches takes of a pipeline kept full, over those it takes alone.

    Microbatches take a tick each. Where the next call waits for this one's results, as a sequence's
    next token does, few microbatches leave gaps for their own next step.
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
    """The numbers of microbatches that are tried: divisors of a device's sequences."""
    split = step.strategy.split()
    stages, local = split.count("layers"), step.workload.batch // split.count("act_batch")
    if step.is_chained:
        tried = (1, 2, 4, 8, stages) if stages > 1 else (1,)
    else:
        few = (1, 4, 16, 64) if stages == 1 else (1, stages, 4 * stages, 16 * stages)
        tried = (*few, math.gcd(local, stages))
    return tuple(sorted({m for m in tried if m <= local and local % m == 0}))
