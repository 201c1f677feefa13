"""The partitioning strategies: one file and one constructor each, for any number of devices."""

from parallax.strategies.cache_tiled import cache_tiled
from parallax.strategies.data_parallel import data_parallel
from parallax.strategies.expert_parallel import expert_parallel
from parallax.strategies.hybrid import hybrid
from parallax.strategies.layerwise import layerwise
from parallax.strategies.named import STRATEGIES, build
from parallax.strategies.ring_sequence import ring_sequence
from parallax.strategies.sharded_weights import fsdp, hsdp, shard_optimizer, shard_weights
from parallax.strategies.tensor_pipeline import tensor_pipeline
from parallax.strategies.training_options import TrainingOptions
from parallax.strategies.two_level import two_level
from parallax.strategies.ulysses import ulysses

__all__ = [
    "STRATEGIES",
    "TrainingOptions",
    "build",
    "cache_tiled",
    "data_parallel",
    "expert_parallel",
    "fsdp",
    "hsdp",
    "hybrid",
    "layerwise",
    "ring_sequence",
    "shard_optimizer",
    "shard_weights",
    "tensor_pipeline",
    "two_level",
    "ulysses",
]
