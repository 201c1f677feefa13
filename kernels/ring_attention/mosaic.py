"""The forward step as a Mosaic GPU kernel for Hopper: what it supports, and its call.

Scores stay on the chip: keys and values come through the copy engine while two warpgroups multiply
with wgmma and keep the output in registers; the carry is read and written once. No GPU has run it
yet: it is checked in interpret mode, and compiled to machine code for the H100.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.xla_metadata import set_xla_metadata

from parallax.kernels.ring_attention import mosaic_rows, mosaic_wide
from parallax.kernels.ring_attention.mosaic_parts import Problem
from parallax.kernels.ring_attention.reference import check_lengths
from parallax.kernels.ring_attention.tiles import TILES, Tile, score_elements

DTYPES = ("float16", "bfloat16")


def unsupported(q, k, v, scale: float, segments: bool, partial_over: str | None) -> str | None:
    """Why the kernel cannot do this, in a few words; None if it can. Shapes as in `step`."""
    if not q.dtype == k.dtype == v.dtype or q.dtype.name not in DTYPES:
        return f"inputs are {q.dtype}, {k.dtype} and {v.dtype}, and it has {' and '.join(DTYPES)}"
    if q.shape[-1] not in TILES or v.shape[-1] != q.shape[-1]:
        dims = ", ".join(map(str, TILES))
        return f"head_dim is {q.shape[-1]} (values {v.shape[-1]}), and it has {dims} for both"
    if segments:
        return "it has no segment ids"
    if partial_over is not None:
        return "it cannot sum scores over a mesh axis"
    if not scale > 0:
        return f"the scale is {scale}, and it takes a positive one"
    return None


def step(
    q, k, v, o, m, l, *, is_causal: bool, kv_length, scale: float, tile: Tile | None = None,
    interpret=None,
):  # fmt: skip
    """Forward step; see `api.attention_step`. Returns (o, m, l).

    Args:
      tile: how to cut it; None takes the one that ships for this head_dim.
      interpret: parameters of Mosaic's interpreter, to run it on a CPU; None compiles.

    Cost: 2 FLOPs x `tiles.score_elements` x (K + V) a query head, declared to XLA with the bytes of
      all operands and results. Lengths that 8 does not divide are padded: a copy of that operand.
    """
    batch, length, heads, width = q.shape
    check_lengths(length, k.shape[1], is_causal)
    tile = tile or TILES[width]
    tiles = -(-length // tile.queries)
    problem = Problem(is_causal, scale, heads // k.shape[2], width, q.dtype, interpret is not None)
    kv_limit = k.shape[1] if kv_length is None else jnp.minimum(kv_length, k.shape[1])
    limit = jnp.reshape(jnp.asarray(kv_limit, jnp.int32), (1,))
    elements = batch * heads * score_elements(length, k.shape[1], is_causal, tile)
    cost = {"cost_flops": 4.0 * elements * width, "cost_bytes": float(_bytes(q, k, v, o, m, l))}

    # Copies of 8-row tiles need whole ones; the rows' sums are read and written without a copy.
    q, k, v = (_pad(x, 1, 8) for x in (q, k, v))
    o = _pad(o, 2, 8)
    m, l = (_pad(x, 2, tile.queries) for x in (m, l))
    operands = _vary_alike(q, k, v, o, m, l, limit)
    body = mosaic_wide.kernel if tile.wide else mosaic_rows.kernel
    with set_xla_metadata(**cost):
        o, m, l = plgpu.kernel(
            functools.partial(body, problem=problem, tile=tile),
            out_type=[_like(x) for x in operands[3:6]],
            grid=(tiles, heads, batch),
            grid_names=("rows", "heads", "batch"),
            num_threads=3,
            thread_name="warpgroup",
            compiler_params=plgpu.CompilerParams(approx_math=True),
            **({} if interpret is None else {"interpret": interpret}),
        )(*operands)
    # The call forgets over which axes its results differ; a limit says it again.
    *results, _ = _vary_alike(o, m, l, operands[-1])
    return tuple(x[:, :, :length] for x in results)


def _bytes(q, k, v, o, m, l) -> int:
    """Every input read once and the carry written once."""
    return sum(
        count * math.prod(x.shape) * x.dtype.itemsize
        for count, arrays in ((1, (q, k, v)), (2, (o, m, l)))
        for x in arrays
    )


def _pad(x, axis: int, multiple: int):
    missing = -x.shape[axis] % multiple
    if not missing:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, missing)
    return jnp.pad(x, widths)


def _vary_alike(*arrays):
    """All arrays typed as differing over the mesh axes that any of them differs over."""
    axes = [frozenset(jax.typeof(x).manual_axis_type.varying) for x in arrays]
    union = frozenset().union(*axes)
    return tuple(
        lax.pcast(x, tuple(sorted(union - mine)), to="varying") if union - mine else x
        for x, mine in zip(arrays, axes, strict=True)
    )


def _like(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
