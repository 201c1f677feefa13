"""The call of the forward step's Mosaic GPU kernel for Hopper.

Scores stay on the chip: the copy engine loads keys and values while two warpgroups multiply with
wgmma and keep the output in registers; a carry is read and written once. No GPU has run it yet: it
is checked in interpret mode, and compiled to machine code for the H100.
"""

import jax
import jax.numpy as jnp

from parallax.kernels import hopper
from parallax.kernels.ring_attention.mosaic_carry import Carries, Finished
from parallax.kernels.ring_attention.mosaic_kernel import Arrays, kernel
from parallax.kernels.ring_attention.mosaic_parts import Problem
from parallax.kernels.ring_attention.reference import Mask, check_lengths
from parallax.kernels.ring_attention.tiles import COPIED_ROWS, Tile, score_elements, shipped_tile


def step(
    q, k, v, carry, *, mask: Mask, scale: float, sinks=None, last: bool = False,
    tile: Tile | None = None,
):  # fmt: skip
    """Run the forward step of `api.attention_step` by the kernel; return (o, m, l) or (out, lse).

    Args:
      carry: (o, m, l), or None: nothing is read, and sinks [H] may be given.
      tile: the tiling; None takes the one that ships for this head_dim and length.

    Cost: 2 FLOPs x `tiles.score_elements` x (K + V) per query head, declared to XLA with the bytes
      of all operands and results. Lengths that 8 does not divide are padded, and m, l and segment
      ids to whole tiles: a copy of that operand, and of o, m and l in and out. Queries that are
      whole tiles already (`Tile.cluster_queries`) avoid all copies of the carry: a ring pads them
      once.
    """
    batch, length, heads, width = q.shape
    tile = tile or shipped_tile(width, length)
    rows = tile.cluster_queries
    is_square = mask.is_causal and mask.window is None
    if length != -(-k.shape[1] // rows) * rows:  # a ring pads its queries itself
        check_lengths(length, k.shape[1], is_square)
    ids = (mask.q_segment_ids, mask.kv_segment_ids)
    problem = Problem(
        is_square, scale, heads // k.shape[2], width, q.dtype, mask.window,
        has_segments=None not in ids,
    )  # fmt: skip
    elements = score_elements(length, k.shape[1], is_square, tile, mask.window, mask.offset)
    numbers = _numbers(mask, k.shape[1])

    # Copies move whole 8-row tiles. What threads load and store, m and l, has no end: whole blocks.
    q, k, v = (hopper.pad(x, 1, COPIED_ROWS) for x in (q, k, v))
    if carry is not None:
        o, *sums = carry
        carry = Carries(hopper.pad(o, 2, COPIED_ROWS), *(hopper.pad(x, 2, rows) for x in sums))
    q_ids, kv_ids = (
        hopper.pad(jnp.asarray(x, jnp.int32), 1, multiple) if problem.has_segments else None
        for x, multiple in zip(ids, (rows, tile.keys), strict=True)
    )
    arrays = Arrays(q, k, v, numbers, q_ids, kv_ids, sinks, carry)
    operands, tree = jax.tree.flatten(arrays)
    results = _results(q, rows, last=last)

    def body(*refs):
        given, made = refs[: len(operands)], refs[len(operands) :]
        new = Finished(*made) if last else Carries(*made)
        kernel(jax.tree.unflatten(tree, given), new, problem=problem, tile=tile)

    made = hopper.call(
        "ring_attention_forward",
        body,
        operands,
        results,
        # Thread blocks start in this order, the last axis fastest: one head's rows together.
        grid={"batch": batch, "heads": heads, "rows": -(-length // rows)},
        flops=4.0 * batch * heads * elements * width,
        bytes_accessed=hopper.bytes_of(*operands, *results),
        **({"cluster": (tile.cluster,), "cluster_names": (hopper.CLUSTER,)}
           if tile.cluster > 1 else {}),
    )  # fmt: skip
    if last:
        out, lse = made
        return out[:, :length], lse[:, :, :length]
    return tuple(x[:, :, :length] for x in made)


def _numbers(mask: Mask, kv_length: int) -> jax.Array:
    """Return what a kernel learns of the mask as it runs, [limit, offset]."""
    limit = kv_length if mask.kv_length is None else jnp.minimum(mask.kv_length, kv_length)
    return jnp.stack([jnp.asarray(x, jnp.int32) for x in (limit, mask.offset)])


def _results(q, rows: int, *, last: bool) -> list[jax.ShapeDtypeStruct]:
    """Return the shapes of what a step writes, for whole tiles of `rows` queries."""
    batch, length, heads, width = q.shape
    sums = jax.ShapeDtypeStruct((batch, heads, -(-length // rows) * rows), jnp.float32)
    if last:
        return [jax.ShapeDtypeStruct(q.shape, q.dtype), sums]
    return [jax.ShapeDtypeStruct((batch, heads, length, width), jnp.float32), sums, sums]
