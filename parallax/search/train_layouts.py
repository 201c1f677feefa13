"""The ways to train under one strategy: how weights and state are sharded, and the schedule."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from parallax.meshes.cluster import Cluster
from parallax.parallel.layer_parts import Pipeline
from parallax.parallel.schedules import SCHEDULES
from parallax.strategies.sharded_weights import cut_axis, shard_optimizer, shard_weights
from parallax.strategy import Strategy

_VIRTUAL = 2  # stages per stage of interleaved schedules


class Layout(NamedTuple):
    """A strategy with its weights sharded in one way.

    Attributes:
      strategy: the strategy, without sharded optimizer state beyond its weights'.
      sharded_state: the same with optimizer state sharded over all devices of its tokens; itself
        where there is nothing more to shard.
    """

    strategy: Strategy
    sharded_state: Strategy


def layouts(strategy: Strategy, cluster: Cluster) -> Iterator[Layout]:
    """Yield a strategy with weights replicated, and sharded over some of its tokens' devices.

    Weights are sharded over all of them, or over those inside a node alone (HSDP), gathered layer
    by layer or once a step.
    """
    yield _layout(strategy)
    if not (tokens := token_axes(strategy)):
        return
    ways = [(strategy, tokens)]
    if inside := _inside_nodes(strategy, cluster):
        ways.append(inside)
    for whole, axes in ways:
        for gather in ("layer", "step"):
            yield _layout(shard_weights(whole, axes, gather=gather))


def schedules(
    strategy: Strategy, num_layers: int, microbatches: int, period: int = 1
) -> Iterator[Strategy]:
    """Yield a strategy with each pipeline schedule that can take these numbers.

    `period` is the length of the layers' pattern, at which chunks start.
    """
    layers, stages = strategy.layers, strategy.split().count("layers")
    if not isinstance(layers, Pipeline) or stages == 1:
        yield strategy
        return
    for name in SCHEDULES:
        virtual = _VIRTUAL if name == "interleaved" else 1
        if virtual == 1 or (num_layers % (virtual * stages * period) == microbatches % stages == 0):
            yield strategy.replace(layers=replace(layers, schedule=name, virtual_stages=virtual))


def token_axes(strategy: Strategy) -> tuple[str, ...]:
    """Return the mesh axes of more than one device that split the tokens, in mesh order."""
    table, sizes = strategy.rules.table("train"), strategy.mesh_axes
    tokens = {*table["act_batch"], *table["act_seq"]}
    return tuple(axis for axis, n in sizes.items() if axis in tokens and n > 1)


def _layout(strategy: Strategy) -> Layout:
    tokens = token_axes(strategy)
    sharded = shard_optimizer(strategy, tokens) if tokens else strategy
    return Layout(strategy, sharded)


def _inside_nodes(strategy: Strategy, cluster: Cluster) -> tuple[Strategy, tuple[str, ...]] | None:
    """Return a strategy and the axes of its tokens inside a node; None if they are all or none.

    A batch axis that spans nodes is cut in two: replicas between nodes, shards inside.
    """
    names, inside = list(strategy.mesh.names), []
    for axis in token_axes(strategy):
        inner = math.prod(strategy.mesh[a] for a in names[names.index(axis) + 1 :])
        room = max(1, cluster.gpus_per_node // inner)
        if strategy.mesh[axis] <= room:
            inside.append(axis)
        elif axis == "data" and room > 1 and strategy.mesh[axis] % room == 0:
            strategy = cut_axis(strategy, axis, room)
            inside.append(axis)
    whole = len(inside) == len(token_axes(strategy))
    return (strategy, tuple(inside)) if inside and not whole else None
