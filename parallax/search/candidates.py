"""Every legal way of splitting a model over a cluster that the strategies here can express."""

import functools
import itertools
from collections.abc import Iterator

from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig
from parallax.strategies import hybrid
from parallax.strategies.data_parallel import data_parallel
from parallax.strategies.expert_parallel import expert_parallel
from parallax.strategies.layerwise import layerwise
from parallax.strategies.ring_sequence import ring_sequence
from parallax.strategies.tensor_pipeline import tensor_pipeline
from parallax.strategies.two_level import two_level
from parallax.strategies.ulysses import ulysses
from parallax.strategy import Strategy

# Meshes of more devices have too many factorisations for all of them to be worth a look: of two
# ways to split one thing, only the better one is then tried.
ALL_UP_TO = 64


def candidates(config: ModelConfig, cluster: Cluster, batch: int) -> Iterator[Strategy]:
    """Strategies whose meshes are the cluster's devices; what a model cannot divide may be among.

    Args:
      config: the model: no more stages than layers, no more tensor shards than heads.
      cluster: how many devices, and how many to a node.
      batch: sequences: no more data shards.
    """
    experts = config.num_experts or 1
    limits = (batch, config.num_layers, config.num_heads, cluster.devices, experts)
    for data, stages, tensor, seq, expert in _factors(cluster.devices, 5):
        if any(n > limit for n, limit in zip((data, stages, tensor, seq, expert), limits,
                                             strict=True)):  # fmt: skip
            continue
        if expert > 1 and config.num_experts % expert:
            continue
        yield from _combined(config, cluster, data, stages, tensor, seq, expert)


@functools.lru_cache(maxsize=64)
def _factors(n: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """Ordered factorisations of n into so many factors."""
    if parts == 1:
        return ((n,),)
    return tuple((f, *rest) for f in range(1, n + 1) if n % f == 0
                 for rest in _factors(n // f, parts - 1))  # fmt: skip


def _combined(
    config: ModelConfig,
    cluster: Cluster,
    data: int,
    stages: int,
    tensor: int,
    seq: int,
    expert: int,
) -> Iterator[Strategy]:
    small = cluster.devices <= ALL_UP_TO
    layers = [tensor_pipeline(1, stages)]
    if stages > 1:
        layers.append(layerwise(stages))
    heads: list[Strategy] = [tensor_pipeline(tensor, 1)]
    if tensor > 1 and (small or tensor > config.num_kv_heads):
        slices = [m for m in (2, 4, 8, 16) if tensor % m == 0 and config.head_dim % (2 * m) == 0]
        heads += [two_level(tensor // m, m, cluster=cluster.name) for m in slices]
    sequence = list(_sequence(config, cluster, seq, inner=expert))
    reached = list(_experts(cluster, expert))
    for stack, split, order, tokens in itertools.product(layers, heads, sequence, reached):
        parts = [data_parallel(data), *_merged(stack, split, stages, tensor)]
        parts += [order, tokens]
        parts = [p for p in parts if p.mesh.size > 1] or [data_parallel(1)]
        try:
            yield parts[0] if len(parts) == 1 else hybrid(*parts)
        except ValueError:
            continue  # parts that cannot both be: two ways through the layers, two expert axes


def _experts(cluster: Cluster, expert: int) -> Iterator[Strategy]:
    """Ways for tokens to reach experts on `expert` devices."""
    yield expert_parallel(expert)
    inside = cluster.gpus_per_node
    if expert > inside > 1 and expert % inside == 0:
        yield expert_parallel(expert, nodes=expert // inside, exchange="ragged").replace(
            name="expert_parallel_nodes"
        )


def _merged(stack: Strategy, split: Strategy, stages: int, tensor: int) -> list[Strategy]:
    """Stages and tensor shards of one strategy where it has both."""
    if stack.name == split.name == "tensor_pipeline":
        return [tensor_pipeline(tensor, stages)]
    return [stack, split]


def _sequence(config: ModelConfig, cluster: Cluster, seq: int, inner: int) -> Iterator[Strategy]:
    """Ways to split the sequence over `seq` devices, `inner` devices apart from each other."""
    if seq == 1:
        yield data_parallel(1)
        return
    yield ring_sequence(seq)
    inside = max(1, cluster.gpus_per_node // inner)
    if seq > inside > 1 and seq % inside == 0:
        yield ring_sequence(seq, nodes=seq // inside).replace(name="double_ring")
    if config.num_heads % seq == 0:
        yield ulysses(seq)
