"""How evenly a strategy spreads a program: copies of weights, idle ticks, layers of zeros."""

import jax

from parallax.parallel.stage_layers import padded_layers
from parallax.results import Evenness
from parallax.spmd import ShardedTransformer


def evenness(sharded: ShardedTransformer) -> Evenness:
    """Closed forms of a model under a strategy, for one workload."""
    strategy, workload = sharded.strategy, sharded.workload
    stages = strategy.split().count("layers")
    ticks = strategy.layers.ticks(workload.microbatches, stages)
    on_device = sum(jax.tree.leaves(sharded.shard_sizes()))
    groups = sharded.groups
    return Evenness(
        replication=on_device * strategy.mesh.size / sharded.config.num_params,
        bubble=ticks / workload.microbatches - 1,
        padded_share=padded_layers(groups) / (len(groups) * max(groups)),
    )
