"""The analytical model: a strategy's time from a synthetic trace, costed like a compiled program.

Nothing is compiled; an estimate takes milliseconds. The trace mirrors what our own programs do:
which products, which passes over memory, which transfers, and what overlaps them.
"""

from parallax.analytic.estimating import Estimate, estimate
from parallax.analytic.hits import WeightReads, weight_reads
from parallax.analytic.memory import estimate_bytes
from parallax.analytic.packed_weights import PackedWeights, Unpacking
from parallax.analytic.train_memory import TrainMemory, train_memory

__all__ = [
    "Estimate",
    "PackedWeights",
    "TrainMemory",
    "Unpacking",
    "WeightReads",
    "estimate",
    "estimate_bytes",
    "train_memory",
    "weight_reads",
]
