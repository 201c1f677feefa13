"""The calls of the backward step's Mosaic GPU kernels for Hopper.

One kernel computes dq, one or two compute dk and dv: `backward_tiles` documents which and why. No
GPU has run them yet: they are checked in interpret mode, and compiled to machine code for the H100.
"""

import functools

import jax
import jax.numpy as jnp

from parallax.kernels import hopper
from parallax.kernels.ring_attention import mosaic_backward_pair, mosaic_backward_rows
from parallax.kernels.ring_attention.backward_tiles import PASSES, Pass, score_elements
from parallax.kernels.ring_attention.mosaic_backward_parts import CLUSTER
from parallax.kernels.ring_attention.mosaic_parts import LOG2_E, Problem
from parallax.kernels.ring_attention.reference import check_lengths

# A multiple of the queries of every block, and of every cluster.
QUERIES = 256


def step_backward(
    q, k, v, d_out, lse, delta, *, is_causal: bool, kv_length, scale: float,
    passes: tuple[Pass, ...] | None = None,
):  # fmt: skip
    """Run the backward step of `api.attention_step_backward`; return (dq, dk, dv), float32.

    Args:
      passes: the kernels to run; None takes those that ship for this head_dim.

    Cost: per query head and pass, 2 K FLOPs x `products` x `score_elements`, declared to XLA with
      the bytes of all operands and results. Lengths that 8 does not divide are padded: a copy of
      that operand; results are sliced from whole tiles.
    """
    length, width = q.shape[1], q.shape[3]
    check_lengths(length, k.shape[1], is_causal)
    problem = Problem(is_causal, scale, q.shape[2] // k.shape[2], width, q.dtype)
    kv_limit = k.shape[1] if kv_length is None else jnp.minimum(kv_length, k.shape[1])
    limit = jnp.reshape(jnp.asarray(kv_limit, jnp.int32), (1,))
    # A query that sees no key, or is padding, has weights 0.
    ends = ((0, 0), (0, 0), (0, -length % QUERIES))
    lse = jnp.where(jnp.isneginf(lse), jnp.inf, lse * LOG2_E)
    lse = jnp.pad(lse, ends, constant_values=jnp.inf)
    delta = jnp.pad(delta * scale, ends)
    lengths = length, k.shape[1]
    # Copies move whole 8-row tiles.
    operands = (*(hopper.pad(x, 1, 8) for x in (q, k, v, d_out)), lse, delta, limit)
    gradients = {}
    for cut in passes or PASSES[width]:
        gradients |= _run(cut, operands, problem, *lengths)
    return tuple(gradients[name] for name in ("dq", "dk", "dv"))


def _run(cut: Pass, operands, problem: Problem, q_length: int, kv_length: int) -> dict:
    """Run one pass and return its gradients by name."""
    batch, _, heads, width = operands[0].shape
    fixed, result_heads = q_length, heads
    if cut.keys_fixed:
        fixed, result_heads = kv_length, operands[1].shape[2]
    rows = cut.fixed * cut.cluster
    clusters = -(-fixed // rows)
    shape = batch, clusters * rows, result_heads, width
    results = [jax.ShapeDtypeStruct(shape, jnp.float32)] * len(cut.makes)
    body = mosaic_backward_pair.kernel if cut.pair else mosaic_backward_rows.kernel
    elements = score_elements(q_length, kv_length, problem.is_causal, cut)
    gradients = hopper.call(
        f"ring_attention_backward_{'_'.join(cut.makes)}",
        functools.partial(body, problem=problem, cut=cut, q_length=q_length),
        operands,
        results,
        grid={"rows": clusters, "heads": result_heads * cut.parts, "batch": batch},
        flops=2.0 * batch * heads * elements * width * cut.products,
        bytes_accessed=hopper.bytes_of(*operands, *results),
        **({"cluster": (cut.cluster,), "cluster_names": (CLUSTER,)} if cut.cluster > 1 else {}),
    )
    return {name: x[:, :fixed] for name, x in zip(cut.makes, gradients, strict=True)}
