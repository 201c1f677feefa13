"""How evenly a strategy spreads a program: copies of weights, idle ticks, layers of zeros."""

import jax

from parallax.models.transformer import abstract_transformer
from parallax.parallel.stage_layers import padded_layers
from parallax.results import Evenness
from parallax.spmd import ShardedTransformer


def evenness(sharded: ShardedTransformer, microbatches: int) -> Evenness:
    """Closed forms of a model under a strategy.

    Args:
      sharded: the model.
      microbatches: of the program that is meant.
    """
    strategy = sharded.strategy
    stages = strategy.split().count("layers")
    ticks = strategy.layers.ticks(microbatches, stages)
    on_device = sum(jax.tree.leaves(sharded.shard_bytes()))
    parameters = jax.tree.leaves(abstract_transformer(sharded.config)[1])
    whole = sum(x.size * x.dtype.itemsize for x in parameters)
    groups = sharded.groups
    return Evenness(
        replication=on_device * strategy.mesh.size / whole,
        bubble=ticks / strategy.layers.rounds(microbatches, stages) - 1,
        padded_share=padded_layers(groups) / (len(groups) * max(groups)),
    )
