"""The chunk sizes and capacities that follow from shapes, for programs and their closed forms.

Shapes: T tokens per device and call, k choices, E experts; P devices, or N nodes of R devices each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from parallax.parallel.experts.dispatch import Capacity


@dataclass(frozen=True)
class ExpertShape:
    """The sizes of one call on one device.

    Attributes:
      tokens: tokens on this device.
      width: D, the model width.
      top_k: choices per token.
      num_experts: experts in the layer.
      item_bytes: bytes per element of a row.
      gate_bytes: bytes per gate: 4, or 8 in float64.
      decodes: whether this is a decoding step's call.
    """

    tokens: int
    width: int
    top_k: int
    num_experts: int
    item_bytes: int
    gate_bytes: int = 4
    decodes: bool = False


def chunk_tokens(tokens: int, chunks: int) -> tuple[int, int]:
    """Return (chunks, tokens per chunk): `chunks`, or fewer if there are fewer tokens."""
    each = math.ceil(tokens / max(1, min(chunks, tokens)))
    return math.ceil(tokens / each), each


def cut(x: jax.Array, chunks: int, each: int, fill=0) -> jax.Array:
    """Cut [T, ...] into [chunks, each, ...], with the last chunk padded by `fill`."""
    missing = chunks * each - x.shape[0]
    if missing:
        tail = jnp.full((missing, *x.shape[1:]), fill, x.dtype)
        x = jnp.concatenate([x, tail])
    return x.reshape(chunks, each, *x.shape[1:])


def join(x: jax.Array, tokens: int) -> jax.Array:
    """Join chunks back into [T, ...]: inverse of `cut`."""
    return x.reshape(-1, *x.shape[2:])[:tokens]


def devices_of(axes: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    """Return the number of devices along these mesh axes together."""
    return math.prod(sizes[axis] for axis in axes)


def share_of_node(num_experts: int, nodes: int, top_k: int) -> float:
    """Return the probability that a uniformly routed token needs a given node.

    It is 1 - C(E - E/N, k) / C(E, k).
    """
    elsewhere = num_experts - num_experts // nodes
    return 1.0 - math.comb(elsewhere, top_k) / math.comb(num_experts, top_k)


def node_capacity(
    tokens: int, top_k: int, num_experts: int, nodes: int, factor: float | None
) -> Capacity:
    """Return the capacity of the first step: tokens for each node."""
    if factor is None:
        return Capacity(tokens, None)
    rows = min(tokens, math.ceil(factor * tokens * share_of_node(num_experts, nodes, top_k)))
    return Capacity(rows, rows)


def relay_capacity(
    tokens: int, top_k: int, num_experts: int, nodes: int, ranks: int, factor: float | None
) -> Capacity:
    """Return the capacity of the second step: rows for each device of a node, from all nodes.

    Args:
      tokens: tokens of one chunk on one device.
      top_k, num_experts, nodes, ranks: sizes of the whole exchange.
      factor: capacity factor; None is dropless.
    """
    arrived = nodes * node_capacity(tokens, top_k, num_experts, nodes, factor).rows
    here = num_experts // (nodes * ranks)
    dropless = arrived * min(top_k, here)
    if factor is None:
        return Capacity(dropless, None)
    each = min(arrived, math.ceil(factor * nodes * tokens * top_k / num_experts))
    return Capacity(min(here * each, dropless), each)
