"""Sizes that follow from shapes alone, for the program and its closed forms: chunks and capacities.

Shapes: T tokens a device a call, k choices, E experts; P devices, or N nodes of R devices each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from parallax.parallel.experts.dispatch import Capacity


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of one call on one device.

    Attributes: tokens of this device; width D; top_k choices a token; num_experts of the layer;
    item_bytes of a row's elements; gate_bytes of a gate (4, or 8 in float64).
    """

    tokens: int
    width: int
    top_k: int
    num_experts: int
    item_bytes: int
    gate_bytes: int = 4


def chunk_tokens(tokens: int, chunks: int) -> tuple[int, int]:
    """(chunks, tokens of each): as many chunks as asked for, fewer if there are fewer tokens."""
    each = math.ceil(tokens / max(1, min(chunks, tokens)))
    return math.ceil(tokens / each), each


def cut(x: jax.Array, chunks: int, each: int, fill=0) -> jax.Array:
    """[T, ...] into [chunks, each, ...], the last filled up."""
    missing = chunks * each - x.shape[0]
    if missing:
        tail = jnp.full((missing, *x.shape[1:]), fill, x.dtype)
        x = jnp.concatenate([x, tail])
    return x.reshape(chunks, each, *x.shape[1:])


def join(x: jax.Array, tokens: int) -> jax.Array:
    """Inverse of `cut`."""
    return x.reshape(-1, *x.shape[2:])[:tokens]


def devices_of(axes: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    """How many devices these mesh axes make."""
    return math.prod(sizes[axis] for axis in axes)


def share_of_node(num_experts: int, nodes: int, top_k: int) -> float:
    """Chance that a token with uniform choices needs a given node: 1 - C(E - E/N, k) / C(E, k)."""
    elsewhere = num_experts - num_experts // nodes
    return 1.0 - math.comb(elsewhere, top_k) / math.comb(num_experts, top_k)


def node_capacity(
    tokens: int, top_k: int, num_experts: int, nodes: int, factor: float | None
) -> Capacity:
    """Places of the first step: tokens for each node."""
    if factor is None:
        return Capacity(tokens, None)
    rows = min(tokens, math.ceil(factor * tokens * share_of_node(num_experts, nodes, top_k)))
    return Capacity(rows, rows)


def relay_capacity(
    tokens: int, top_k: int, num_experts: int, nodes: int, ranks: int, factor: float | None
) -> Capacity:
    """Places of the second step: rows for each device of the node, of all N nodes' tokens.

    Args: of the whole exchange; tokens of one chunk on one device.
    """
    arrived = nodes * node_capacity(tokens, top_k, num_experts, nodes, factor).rows
    here = num_experts // (nodes * ranks)
    dropless = arrived * min(top_k, here)
    if factor is None:
        return Capacity(dropless, None)
    each = min(arrived, math.ceil(factor * nodes * tokens * top_k / num_experts))
    return Capacity(min(here * each, dropless), each)
