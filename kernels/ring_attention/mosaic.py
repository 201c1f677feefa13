"""The call of the forward step's Mosaic GPU kernel for Hopper.

Scores stay on the chip: the copy engine loads keys and values while two warpgroups multiply with
wgmma and keep the output in registers; the carry is read and written once. No GPU has run it yet:
it is checked in interpret mode, and compiled to machine code for the H100.
"""

import functools

import jax
import jax.numpy as jnp

from parallax.kernels import hopper
from parallax.kernels.ring_attention import mosaic_rows, mosaic_wide
from parallax.kernels.ring_attention.mosaic_parts import Problem
from parallax.kernels.ring_attention.reference import check_lengths
from parallax.kernels.ring_attention.tiles import COPIED_ROWS, TILES, Tile, score_elements


def step(q, k, v, o, m, l, *, is_causal: bool, kv_length, scale: float, tile: Tile | None = None):
    """Run the forward step of `api.attention_step` by the kernel; return (o, m, l).

    Args:
      tile: the tiling; None takes the one that ships for this head_dim.

    Cost: 2 FLOPs x `tiles.score_elements` x (K + V) per query head, declared to XLA with the bytes
      of all operands and results. Lengths that 8 does not divide are padded, and m and l to whole
      tiles: a copy of that operand, and of o, m and l in and out. Queries that are whole tiles
      already (`Tile.cluster_queries`) avoid all copies of the carry: a ring pads them once.
    """
    batch, length, heads, width = q.shape
    tile = tile or TILES[width]
    rows = tile.cluster_queries
    if length != -(-k.shape[1] // rows) * rows:  # a ring pads its queries itself
        check_lengths(length, k.shape[1], is_causal)
    problem = Problem(is_causal, scale, heads // k.shape[2], width, q.dtype)
    kv_limit = k.shape[1] if kv_length is None else jnp.minimum(kv_length, k.shape[1])
    limit = jnp.reshape(jnp.asarray(kv_limit, jnp.int32), (1,))
    elements = batch * heads * score_elements(length, k.shape[1], is_causal, tile)
    bytes_accessed = hopper.bytes_of(q, k, v, o, m, l, o, m, l)

    # Copies move whole 8-row tiles.
    q, k, v = (hopper.pad(x, 1, COPIED_ROWS) for x in (q, k, v))
    o = hopper.pad(o, 2, COPIED_ROWS)
    # m and l are copied untiled and would run into the next head's rows: they need whole blocks.
    m, l = (hopper.pad(x, 2, rows) for x in (m, l))
    cluster = {"cluster": (tile.cluster,), "cluster_names": ("cluster",)}
    body = mosaic_wide.kernel if tile.wide else mosaic_rows.kernel
    results = hopper.call(
        "ring_attention_forward",
        functools.partial(body, problem=problem, tile=tile),
        (q, k, v, o, m, l, limit),
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (o, m, l)],
        # Thread blocks start in this order, the last axis fastest: one head's rows together.
        grid={"batch": batch, "heads": heads, "rows": -(-length // rows)},
        flops=4.0 * elements * width,
        bytes_accessed=bytes_accessed,
        **(cluster if tile.cluster > 1 else {}),
    )
    return tuple(x[:, :, :length] for x in results)
