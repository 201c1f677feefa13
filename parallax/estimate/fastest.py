"""A strategy at its best: the microbatches that fit a device and take the least time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from parallax.cost import Rates
from parallax.decoding import Decoder
from parallax.estimate.estimating import Estimate, estimate
from parallax.estimate.memory import estimate_bytes
from parallax.estimate.packed_weights import PackedWeights, weights_of
from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.spmd import ShardedTransformer
from parallax.strategy import Strategy
from parallax.workload import Workload

Phase = Literal["prefill", "decode"]


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
    where: Cluster,
    phase: Phase,
    batch: int,
    seq_len: int,
    *,
    weights: PackedWeights | None = None,
    rates: Rates | None = None,
) -> Fastest:
    """The best of some numbers of microbatches, weights read from the L2 cache where they stay.

    Args:
      phase: a prefill of batch x seq_len tokens, or a token more for each sequence of that many.
      weights: how they are stored; None is as the config says.

    Raises:
      ValueError: sizes that do not divide, or nothing that fits a device; says how much is missing.

    Cost: some ten milliseconds.
    """
    local = batch // strategy.split().count("act_batch")
    stages = strategy.split().count("layers")
    best, least, steady = None, math.inf, math.inf
    tried = microbatches_of(phase, stages, local)
    programs = _steps if phase == "decode" else _passes
    for m, workload, decoder, needed in programs(
        config, strategy, batch, seq_len, tried, weights or weights_of(config)
    ):
        least = min(least, needed)
        if needed > where.usable_bytes:
            continue
        found = estimate(config, strategy, workload, where, decoder=decoder, weights=weights,
                         rates=rates, resident=True)  # fmt: skip
        steady = min(steady, found.cost.seconds * steady_share(strategy, phase, m))
        if best is None or found.cost.seconds < best.estimate.cost.seconds:
            best = Fastest(found, m, needed, steady)
    if best is None:
        raise ValueError(
            f"strategy '{strategy.name}' with batch {batch} x {seq_len}: a device needs "
            f"{least / 1e9:.3g} GB, {where.usable_bytes / 1e9:.3g} GB are usable. Use a smaller "
            "batch."
        )
    return replace(best, steady_s=steady)


def steady_share(strategy: Strategy, phase: Phase, microbatches: int) -> float:
    """Ticks that one of many batches takes of a pipeline kept full, over those it takes alone.

    A prefill's microbatches take a tick each. A sequence's next token waits for all stages, so few
    microbatches leave gaps for their own next step.
    """
    stages = strategy.split().count("layers")
    if stages == 1:
        return 1.0
    ticks, busy = strategy.layers.ticks(microbatches, stages), microbatches
    if phase == "decode":
        lag = (strategy.layers.ticks(microbatches, stages) - microbatches) // (stages - 1)
        busy = max(microbatches, lag * stages)
    return busy / ticks


def microbatches_of(phase: Phase, stages: int, local: int) -> tuple[int, ...]:
    """What is tried, of a device's sequences.

    Raises:
      ValueError: fewer sequences than devices that split the batch.
    """
    if not local:
        raise ValueError("fewer sequences than devices that split the batch. Use a larger batch.")
    if phase == "decode":
        tried = (1, 2, 4, 8, stages) if stages > 1 else (1,)
    else:
        few = (1, 4, 16, 64) if stages == 1 else (1, stages, 4 * stages, 16 * stages)
        tried = (*few, math.gcd(local, stages))
    return tuple(sorted({m for m in tried if m <= local and local % m == 0}))


_Programs = Iterator[tuple[int, Workload, Decoder | None, float]]


def _passes(
    config: ModelConfig, strategy: Strategy, batch: int, seq_len: int, tried: Sequence[int],
    weights: PackedWeights,
) -> _Programs:  # fmt: skip
    for m in tried:
        workload = Workload(batch, seq_len, m)
        sharded = ShardedTransformer(config, strategy, workload)
        yield m, workload, None, estimate_bytes(sharded, weights=weights)


def _steps(
    config: ModelConfig, strategy: Strategy, batch: int, seq_len: int, tried: Sequence[int],
    weights: PackedWeights,
) -> _Programs:  # fmt: skip
    """A step of decoding holds its own few tokens, not a prompt's."""
    workload = Workload(batch, seq_len, 1)
    sharded = ShardedTransformer(config, strategy, workload)
    one = Workload(batch, strategy.split().count("act_seq"), 1)
    held = estimate_bytes(ShardedTransformer(config, strategy, one), weights=weights)
    for m in tried:
        decoder = Decoder(sharded, new_tokens=1, microbatches=m)
        yield m, workload, decoder, held + decoder.kv_bytes()
