"""The sizes that a comparison runs: what is asked for, and a small model to verify."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from parallax.models.config import ModelConfig
from parallax.parallel.experts import ExchangeExperts, LocalExperts
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
from parallax.rules import Phase
from parallax.strategy import Strategy
from parallax.workload import Workload

type Cases = tuple[tuple[Strategy, Workload], ...]


@dataclass(frozen=True)
class Size:
    """A model and its workload; each strategy takes the microbatches that divide its part.

    Attributes:
      config, base: the model and its workload.
      explicit: whether the number of microbatches was asked for, and must not be lowered.
    """

    config: ModelConfig
    base: Workload
    explicit: bool

    def workload(self, strategy: Strategy) -> Workload:
        return fit_microbatches(strategy, self.base, self.explicit)

    def cases(self, strategies: Sequence[Strategy]) -> Cases:
        return tuple((s, self.workload(s)) for s in strategies)

    def check(self, strategy: Strategy, new_tokens: int = 0) -> None:
        """Raise ValueError where sizes do not divide, for decoding too if there are new_tokens."""
        sharded = ShardedTransformer(self.config, strategy, self.workload(strategy))
        if new_tokens:
            Decoder(sharded, new_tokens)


def small_case(strategy: Strategy, small: Size, phase: Phase) -> tuple[Strategy, Workload]:
    """Return what of a strategy is verified: schedules are full, and tiles of experts' rows short.

    Tiles as long as on GPUs would be one for each expert, most of it empty. Those of a decoding
    step hold all tokens, as they do there.
    """
    split, experts, config = strategy.split(), strategy.experts, small.config
    filling = max(small.base.microbatches, min(4, split.count("layers")))
    workload = fit_microbatches(strategy, replace(small.base, microbatches=filling), False)
    if not config.num_experts or not isinstance(experts, LocalExperts | ExchangeExperts):
        return strategy, workload
    tile = workload.batch
    if phase != "decode":
        senders = math.prod(strategy.mesh_axes[axis] for axis in experts.exchange_axes)
        tokens = workload.tokens // workload.microbatches // split.count("act_batch", "act_seq")
        tile = max(8, tokens * senders * config.experts_per_token // config.num_experts // 2)
    return strategy.replace(experts=replace(experts, tile=min(experts.tile, tile))), workload


def multiple(size: int, parts: Sequence[int]) -> int:
    """Return the least multiple of all `parts` that is at least `size`."""
    unit = math.lcm(*parts)
    return -(-size // unit) * unit


def fit_microbatches(strategy: Strategy, base: Workload, explicit: bool) -> Workload:
    """Return the workload with the strategy's microbatches, else the most that divide its part."""
    own = getattr(strategy.layers, "microbatches", None)
    if own is not None:
        return replace(base, microbatches=own)
    local = base.batch // strategy.split().count("act_batch")
    if explicit or local < 1:
        return base
    count = next(m for m in range(min(base.microbatches, local), 0, -1) if local % m == 0)
    return replace(base, microbatches=count)
