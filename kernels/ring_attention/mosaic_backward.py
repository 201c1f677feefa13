"""The calls of the backward step's Mosaic GPU kernels for Hopper.

One kernel computes dq, one or two compute dk and dv: `backward_tiles` documents which and why. No
GPU has run them yet: they are checked in interpret mode, and compiled to machine code for the H100.
"""

import functools

import jax
import jax.numpy as jnp

from parallax.kernels import hopper
from parallax.kernels.ring_attention.backward_tiles import PASSES, Pass, score_elements
from parallax.kernels.ring_attention.mosaic_backward_kernel import kernel
from parallax.kernels.ring_attention.mosaic_parts import LOG2_E, Problem
from parallax.kernels.ring_attention.reference import Mask, check_lengths

# A multiple of the rows of every block, and of every cluster.
ROWS = 256


def step_backward(
    q, k, v, d_out, lse, delta, *, mask: Mask, scale: float,
    passes: tuple[Pass, ...] | None = None,
):  # fmt: skip
    """Run the backward step of `api.attention_step_backward`; return (dq, dk, dv), float32.

    Args:
      passes: the kernels to run; None takes those that ship for this head_dim.

    Cost: per query head and pass, 2 K FLOPs x `products` x `score_elements`, declared to XLA with
      the bytes of all operands and results. Lengths that 8 does not divide are padded: a copy of
      that operand; results are sliced from whole tiles.
    """
    lengths, width = (q.shape[1], k.shape[1]), q.shape[3]
    check_lengths(*lengths, mask.is_causal and mask.window is None)
    kv_limit = k.shape[1] if mask.kv_length is None else jnp.minimum(mask.kv_length, k.shape[1])
    offset = 0 if mask.window is None else mask.offset
    sight = jnp.stack([jnp.asarray(x, jnp.int32) for x in (kv_limit, offset)])
    ids = [x for x in (mask.q_segment_ids, mask.kv_segment_ids) if x is not None]
    has_segments = len(ids) == 2
    # A query that sees no key, or is padding, has weights 0.
    lse = jnp.where(jnp.isneginf(lse), jnp.inf, lse * LOG2_E)
    lse = jnp.pad(lse, ((0, 0), (0, 0), (0, -lengths[0] % ROWS)), constant_values=jnp.inf)
    # Copies of blocks move whole 8-row tiles; others do not stop at an array's end.
    operands = (
        *(hopper.pad(x, 1, 8) for x in (q, k, v, d_out)),
        lse, hopper.pad(delta * scale, 2, ROWS), sight,
        *(hopper.pad(x.astype(jnp.int32), 1, ROWS) for x in ids if has_segments),
    )  # fmt: skip
    problem = Problem(
        mask.is_causal, scale, q.shape[2] // k.shape[2], width, q.dtype, mask.window, has_segments
    )
    gradients = {}
    for cut in passes or PASSES[width]:
        elements = score_elements(*lengths, cut, mask)
        gradients |= _run(cut, operands, problem, lengths[cut.by_keys], elements)
    if mask.kv_length is not None:
        counts = jnp.arange(k.shape[1], dtype=jnp.int32)[:, None, None] < kv_limit
        gradients |= {x: jnp.where(counts, gradients[x], 0.0) for x in ("dk", "dv")}
    return tuple(gradients[name] for name in ("dq", "dk", "dv"))


def _run(cut: Pass, operands, problem: Problem, length: int, elements: int) -> dict:
    """Run one pass over `length` rows and return its gradients by name."""
    batch, _, heads, width = operands[0].shape
    result_heads = operands[1].shape[2] if cut.by_keys else heads
    clusters = -(-length // cut.cluster_rows)
    shape = batch, clusters * cut.cluster_rows, result_heads, width
    results = [jax.ShapeDtypeStruct(shape, jnp.float32)] * len(cut.makes)
    cluster = {"cluster": (cut.cluster,), "cluster_names": (hopper.CLUSTER,)}
    gradients = hopper.call(
        f"ring_attention_backward_{'_'.join(cut.makes)}",
        functools.partial(kernel, problem=problem, cut=cut),
        operands,
        results,
        grid={"rows": clusters, "heads": result_heads * cut.parts, "batch": batch},
        flops=2.0 * batch * heads * elements * width * cut.products,
        bytes_accessed=hopper.bytes_of(*operands, *results),
        **(cluster if cut.cluster > 1 else {}),
    )
    return {name: x[:, :length] for name, x in zip(cut.makes, gradients, strict=True)}
