"""The calls of the Mosaic GPU kernels for Hopper: the attention step, forward and backward.

Scores stay on the chip: the copy engine loads blocks of tokens while warpgroups multiply with
wgmma and keep results in registers. Forward is one kernel; backward, one computes dq, and one or
two compute dk and dv: `backward_tiles` documents which and why. No GPU has run them yet: they are
checked in interpret mode, and compiled to machine code for the H100.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from parallax.kernels import hopper
from parallax.kernels.chip import L2_BYTES, MULTIPROCESSORS
from parallax.kernels.ring_attention import mosaic_backward as backward
from parallax.kernels.ring_attention import mosaic_kernel as forward
from parallax.kernels.ring_attention.backward_tiles import PASSES, Pass
from parallax.kernels.ring_attention.mask import Mask, score_elements, shared_blocks
from parallax.kernels.ring_attention.mosaic_carry import Carries, Finished
from parallax.kernels.ring_attention.mosaic_parts import LOG2_E, MaskArrays, Problem
from parallax.kernels.ring_attention.mosaic_tasks import schedule
from parallax.kernels.ring_attention.tiles import COPIED_ROWS, Tile, shipped_tile

# A multiple of the rows of every block of the backward kernels, and of every cluster.
BACKWARD_ROWS = 256
# Assumed: the share of L2 that keys and values may take, and what a tile begins and ends with, in
# blocks of keys.
_OF_KEYS, _ENDS = 0.8, 1


def step(
    q, k, v, carry, *, mask: Mask, scale: float, sinks=None, last: bool = False,
    tile: Tile | None = None,
):  # fmt: skip
    """Run the forward step of `api.attention_step` by the kernel; return (o, m, l) or (out, lse).

    Args:
      carry: (o, m, l), or None: nothing is read, and sinks [H] may be given.
      tile: the tiling; None takes the one that ships for this shape.

    Cost: 2 FLOPs x `mask.score_elements` x (K + V) per query head, declared to XLA with the bytes
      of all operands and results; segments may skip some of them, for which XLA reads the ids first
      (`mask.shared_blocks`). Lengths that 8 does not divide are padded, and m, l and segment ids to
      whole tiles: a copy of that operand, and of o, m and l in and out. Queries that are whole
      tiles already (`Tile.cluster_queries`) avoid all copies of the carry: a ring pads them once.
    """
    batch, length, heads, width = q.shape
    is_whole = carry is None and last
    tile = tile or shipped_tile(q.shape, is_whole=is_whole and not mask.has_segments)
    if tile.persistent and not is_whole:
        raise ValueError("attention_step: a persistent tiling neither takes nor returns a carry.")
    rows, lengths = tile.cluster_queries, (length, k.shape[1])
    if length != -(-k.shape[1] // rows) * rows:  # a ring pads its queries itself
        mask.check_lengths(*lengths)
    problem = _problem(q, k, mask, scale)
    # Copies move whole 8-row tiles. What threads load and store, m and l, has no end: whole blocks.
    q, k, v = (hopper.pad(x, 1, COPIED_ROWS) for x in (q, k, v))
    if carry is not None:
        o, *sums = carry
        carry = Carries(hopper.pad(o, 2, COPIED_ROWS), *(hopper.pad(x, 2, rows) for x in sums))
    of_mask = _mask_arrays(mask, lengths, rows, tile.keys, (rows, tile.keys))
    tiles = -(-length // rows)
    # Thread blocks start in this order, the last axis fastest: one head's rows together.
    grid, to_do = {"batch": batch, "heads": heads, "rows": tiles}, None
    if tile.persistent:
        to_do = _schedule(q, k, mask, lengths[1], tile, tiles)
        grid = {"blocks": to_do.shape[0]}
    arrays = forward.Arrays(q, k, v, of_mask, sinks, carry, to_do)
    sums = jax.ShapeDtypeStruct((batch, heads, tiles * rows), jnp.float32)
    o = jax.ShapeDtypeStruct((batch, heads, q.shape[1], width), jnp.float32)
    out = jax.ShapeDtypeStruct(q.shape, q.dtype)
    made = _call(
        "ring_attention_forward",
        functools.partial(forward.kernel, problem=problem, tile=tile),
        arrays,
        Finished(out, sums) if last else Carries(o, sums, sums),
        grid=grid,
        flops=4.0 * batch * heads * width * score_elements(mask, lengths, rows, tile.keys),
        cluster=tile.cluster,
        num_threads=1 + tile.warpgroups,
    )
    if last:
        return made.out[:, :length], made.lse[:, :, :length]
    return tuple(x[:, :, :length] for x in made)


def _schedule(q, k, mask: Mask, keys: int, tile: Tile, tiles: int) -> jax.Array:
    """Return the tiles of each persistent block (`mosaic_tasks.schedule`), by what is known."""
    batch, _, heads, width = q.shape
    rows, kv_heads = tile.cluster_queries, k.shape[2]
    _, visited = mask.known(keys).visits(np.arange(tiles) * rows, rows, tile.keys, keys)
    fit = max(1, int(L2_BYTES * _OF_KEYS) // (2 * keys * width * q.dtype.itemsize))
    blocks = min(MULTIPROCESSORS // tile.cluster, batch * heads * tiles)
    costs = (_ENDS + visited).tolist()
    return jnp.asarray(schedule(costs, batch * heads, blocks, fit * heads // kv_heads))


def step_backward(
    q, k, v, d_out, lse, delta, *, mask: Mask, scale: float,
    passes: tuple[Pass, ...] | None = None,
):  # fmt: skip
    """Run the backward step of `api.attention_step_backward`; return (dq, dk, dv), float32.

    Args:
      passes: the kernels to run; None takes those that ship for this head_dim.

    Cost: per query head and pass, 2 K FLOPs x `products` x `mask.score_elements`, declared to XLA
      with the bytes of all operands and results; segments may skip some of them, as forward.
      Lengths that 8 does not divide are padded: a copy of that operand; results are sliced from
      whole tiles.
    """
    lengths = q.shape[1], k.shape[1]
    mask.check_lengths(*lengths)
    # A query that sees no key, or is padding, has weights 0.
    lse = jnp.where(jnp.isneginf(lse), jnp.inf, lse * LOG2_E)
    missing = -lengths[0] % BACKWARD_ROWS
    lse = jnp.pad(lse, ((0, 0), (0, 0), (0, missing)), constant_values=jnp.inf)
    # Copies of blocks move whole 8-row tiles; others do not stop at an array's end.
    problem, gradients = _problem(q, k, mask, scale), {}
    q, k, v, d_out = (hopper.pad(x, 1, COPIED_ROWS) for x in (q, k, v, d_out))
    arrays = backward.Arrays(q, k, v, d_out, lse, hopper.pad(delta * scale, 2, BACKWARD_ROWS))
    for cut in passes or PASSES[q.shape[3]]:
        gradients |= _run(cut, arrays, problem, mask, lengths)
    if mask.kv_length is not None:
        counts = jnp.arange(lengths[1], dtype=jnp.int32)[:, None, None] < mask.kv_length
        gradients |= {x: jnp.where(counts, gradients[x], 0.0) for x in ("dk", "dv")}
    return tuple(gradients[name] for name in ("dq", "dk", "dv"))


def _run(
    cut: Pass, arrays: backward.Arrays, problem: Problem, mask: Mask, lengths: tuple[int, int]
) -> dict:
    """Run one pass and return its gradients by name."""
    batch, _, heads, width = arrays.q.shape
    tiling, padded = (lengths, cut.cluster_rows, cut.block), (BACKWARD_ROWS, BACKWARD_ROWS)
    of_mask = _mask_arrays(mask, *tiling, padded, by_keys=cut.by_keys)
    tiles = -(-lengths[cut.by_keys] // cut.cluster_rows)
    result_heads = arrays.k.shape[2] if cut.by_keys else heads
    shape = batch, tiles * cut.cluster_rows, result_heads, width
    results = dict.fromkeys(cut.makes, jax.ShapeDtypeStruct(shape, jnp.float32))
    elements = score_elements(mask, *tiling, by_keys=cut.by_keys)
    made = _call(
        f"ring_attention_backward_{'_'.join(cut.makes)}",
        functools.partial(backward.kernel, problem=problem, cut=cut),
        arrays._replace(mask=of_mask),
        results,
        grid={"rows": tiles, "heads": result_heads * cut.parts, "batch": batch},
        flops=2.0 * batch * heads * elements * width * cut.products,
        cluster=cut.cluster,
    )
    return {name: x[:, : lengths[cut.by_keys]] for name, x in made.items()}


def _call(
    name: str, kernel, arrays, results, *, grid: dict[str, int], flops: float, cluster: int,
    num_threads: int = 3,
):  # fmt: skip
    """Call `kernel(arrays, results)` on trees of arrays, and return what it writes as `results`."""
    operands, of_arrays = jax.tree.flatten(arrays)
    shapes, of_results = jax.tree.flatten(results)

    def body(*refs):
        given, made = refs[: len(operands)], refs[len(operands) :]
        kernel(jax.tree.unflatten(of_arrays, given), jax.tree.unflatten(of_results, made))

    clusters = {"cluster": (cluster,), "cluster_names": (hopper.CLUSTER,)} if cluster > 1 else {}
    made = hopper.call(
        name, body, operands, shapes, grid=grid, flops=flops,
        bytes_accessed=hopper.bytes_of(*operands, *shapes), num_threads=num_threads, **clusters,
    )  # fmt: skip
    return jax.tree.unflatten(of_results, made)


def _problem(q, k, mask: Mask, scale: float) -> Problem:
    return Problem(
        mask.is_causal, scale, q.shape[2] // k.shape[2], q.shape[3], q.dtype, mask.window,
        mask.has_segments,
    )  # fmt: skip


def _mask_arrays(
    mask: Mask, lengths: tuple[int, int], rows: int, block: int, padded: tuple[int, int], *,
    by_keys: bool = False,
) -> MaskArrays:  # fmt: skip
    """Return the mask's operands, with ids of queries and of keys padded to these multiples."""
    limit_and_offset = mask.limit(lengths[1]), mask.offset
    numbers = jnp.stack([jnp.asarray(x, jnp.int32) for x in limit_and_offset])
    if not mask.has_segments:
        return MaskArrays(numbers, None, None, None)
    q_ids, kv_ids = (jnp.asarray(x, jnp.int32) for x in (mask.q_segment_ids, mask.kv_segment_ids))
    shared = shared_blocks(*((kv_ids, q_ids) if by_keys else (q_ids, kv_ids)), rows, block)
    q_ids, kv_ids = (hopper.pad(x, 1, n) for x, n in zip((q_ids, kv_ids), padded, strict=True))
    return MaskArrays(numbers, q_ids, kv_ids, shared)
