"""The backward step as Mosaic GPU kernels for Hopper: what they support, and their calls.

One kernel makes dq, one or two make dk and dv (`backward_tiles` says which and why). No GPU has run
them yet: they are checked in interpret mode, and compiled to machine code for the H100.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.xla_metadata import set_xla_metadata

from parallax.kernels.ring_attention import mosaic, mosaic_backward_pair, mosaic_backward_rows
from parallax.kernels.ring_attention.backward_tiles import PASSES, Pass, score_elements
from parallax.kernels.ring_attention.mosaic import _pad, _vary_alike
from parallax.kernels.ring_attention.mosaic_parts import LOG2_E, Problem
from parallax.kernels.ring_attention.reference import check_lengths

# All blocks of queries divide it.
QUERIES = 128


def unsupported(
    q, k, v, d_out, scale: float, segments: bool, partial_over: str | None
) -> str | None:
    """Why the kernels cannot do this, in a few words; None if they can. Shapes as in `step`."""
    if d_out.dtype != q.dtype:
        return f"d_out is {d_out.dtype} and q {q.dtype}, and it takes one dtype for both"
    return mosaic.unsupported(q, k, v, scale, segments, partial_over)


def step_backward(
    q, k, v, d_out, lse, delta, *, is_causal: bool, kv_length, scale: float,
    passes: tuple[Pass, ...] | None = None, interpret=None,
):  # fmt: skip
    """Backward step; see `api.attention_step_backward`. Returns (dq, dk, dv), float32.

    Args:
      passes: how to cut it; None takes those that ship for this head_dim.
      interpret: parameters of Mosaic's interpreter, to run it on a CPU; None compiles.

    Cost: 2 K FLOPs x `products` x `score_elements` of each pass and query head, declared to XLA
      with the bytes of all operands and results. Lengths that 8 does not divide are padded: a copy
      of that operand; results are cut from whole tiles.
    """
    check_lengths(q.shape[1], k.shape[1], is_causal)
    heads_per_kv = q.shape[2] // k.shape[2]
    problem = Problem(is_causal, scale, heads_per_kv, q.shape[3], q.dtype, interpret is not None)
    kv_limit = k.shape[1] if kv_length is None else jnp.minimum(kv_length, k.shape[1])
    limit = jnp.reshape(jnp.asarray(kv_limit, jnp.int32), (1,))
    q_length, kv_tokens = q.shape[1], k.shape[1]
    # Copies of 8-row tiles need whole ones; a query that is not there weighs nothing.
    q, k, v, d_out = (_pad(x, 1, 8) for x in (q, k, v, d_out))
    missing = -q_length % QUERIES
    lse = jnp.pad(lse * LOG2_E, ((0, 0), (0, 0), (0, missing)), constant_values=jnp.inf)
    delta = jnp.pad(delta, ((0, 0), (0, 0), (0, missing)))
    operands = _vary_alike(q, k, v, d_out, lse, delta, limit)
    found = {}
    for cut in passes or PASSES[problem.width]:
        found |= _run(cut, operands, problem, q_length, kv_tokens, interpret)
    return tuple(found[name] for name in ("dq", "dk", "dv"))


def _run(cut: Pass, operands, problem: Problem, q_length, kv_tokens, interpret) -> dict:
    """Calls one pass: its gradients by name."""
    batch, _, heads, width = operands[0].shape
    fixed, result_heads = (kv_tokens, operands[1].shape[2]) if cut.keys_fixed else (q_length, heads)
    tiles = -(-fixed // cut.fixed)
    elements = score_elements(q_length, kv_tokens, problem.is_causal, cut)
    shape = (batch, tiles * cut.fixed, result_heads, width)
    read = sum(math.prod(x.shape) * x.dtype.itemsize for x in operands)
    cost = {
        "cost_flops": 2.0 * batch * heads * elements * width * cut.products,
        "cost_bytes": float(read + 4 * len(cut.makes) * math.prod(shape)),
    }
    varying = jax.typeof(operands[0]).manual_axis_type
    body = mosaic_backward_pair.kernel if cut.pair else mosaic_backward_rows.kernel
    with set_xla_metadata(**cost):
        results = plgpu.kernel(
            functools.partial(body, problem=problem, cut=cut, q_length=q_length),
            out_type=[jax.ShapeDtypeStruct(shape, jnp.float32, manual_axis_type=varying)]
            * len(cut.makes),
            grid=(tiles, result_heads, batch, cut.parts),
            grid_names=("rows", "heads", "batch", "parts"),
            num_threads=3,
            thread_name="warpgroup",
            compiler_params=plgpu.CompilerParams(approx_math=True),
            **({} if interpret is None else {"interpret": interpret}),
        )(*operands)
    *results, _ = _vary_alike(*results, operands[-1])
    return {name: x[:, :fixed] for name, x in zip(cut.makes, results, strict=True)}
