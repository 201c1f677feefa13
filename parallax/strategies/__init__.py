"""The partitioning systems: one file and one constructor each, for any number of devices."""

from collections.abc import Callable

from parallax.strategies.data_parallel import data_parallel
from parallax.strategies.ring_sequence import ring_sequence
from parallax.strategies.tensor_pipeline import tensor_pipeline
from parallax.strategy import Strategy

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "tensor_pipeline": tensor_pipeline,
    "ring_sequence": ring_sequence,
    "data_parallel": data_parallel,
}

__all__ = ["STRATEGIES", "data_parallel", "ring_sequence", "tensor_pipeline"]
