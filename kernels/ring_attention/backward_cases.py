"""The cases of the backward step that tests check, that are compiled, and that a benchmark times.

An `Operation` of `kernels.operations`, which documents each part.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parallax.kernels.ring_attention import cases as forward
from parallax.kernels.ring_attention.api import (
    attention_step,
    attention_step_backward,
    empty_carry,
    finish,
)
from parallax.kernels.validation import PLAIN, Kind

ABOUT = (
    "One step of attention, backward: dq, dk and dv in float32 from the final log-sum-exp; same "
    "masks and head dims as forward. Throughput counts five products; the kernels recompute scores "
    "for each result and so compute seven (nine for heads of 512), without atomics."
)


class Case(NamedTuple):
    """The backward step of the forward case `step`, over all of its keys."""

    step: forward.Case

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def dtype(self) -> str:
        return self.step.dtype

    @property
    def flops(self) -> float:
        """FLOPs of five products of visible scores; the forward step has two."""
        return 2.5 * self.step.flops

    @property
    def bytes_accessed(self) -> float:
        """Bytes of queries, keys, values and d_out, and of three float32 gradients, once each."""
        step = self.step
        queries, keys = step.heads * step.q_length, step.kv_heads * step.kv_length
        elements = step.batch * step.head_dim * (2 * queries + 2 * keys)
        return 2.0 * elements + 4.0 * step.batch * step.head_dim * (queries + 2 * keys)

    @property
    def kind(self) -> Kind:
        return self.step.kind._replace(cut=PLAIN)  # cuts are of the forward step only


# Every pass of every head_dim: ragged ends, grouped heads, both dtypes, masks, blocks hidden whole.
SMALL = tuple(
    Case(step)
    for step in (
        forward.Case(64, "bfloat16", 40, 450),
        forward.Case(64, "float16", 137, 137, heads=2, is_causal=True),
        forward.Case(128, "bfloat16", 313, 313, is_causal=True),
        forward.Case(128, "float16", 70, 160, heads=2, limit=131),
        forward.Case(256, "bfloat16", 72, 150, heads=4, kv_heads=2, limit=63),
        forward.Case(256, "float16", 130, 130, is_causal=True),
        forward.Case(512, "bfloat16", 70, 70, heads=2, is_causal=True),
        forward.Case(512, "float16", 72, 137, limit=70),
    )
)
# Programs differ by head_dim, mask and dtype: the largest of each head_dim, and the other dtype
# where registers are scarcest.
SHIPPED = tuple(
    Case(step)
    for step in forward.SHIPPED
    if step.tile is None
    and not (step.first or step.window)  # of the forward step only
    and (step.is_causal or (step.limit is None and step.head_dim >= 256))
)
TIMED = tuple(map(Case, forward.TIMED))


def inputs(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q, k, v and d_out, [B, tokens, heads, head_dim] in the case's dtype, and any limit."""
    step = case.step
    q, k, v, *_ = forward.inputs(step, seed)
    d_out = np.random.default_rng(seed + 1).normal(size=q.shape).astype(q.dtype)
    limit = () if step.limit is None else (np.array(step.limit, np.int32),)
    return q, k, v, d_out, *limit


def program(case: Case, implementation: str | None) -> Callable[..., tuple[jax.Array, ...]]:
    """Return a function to dq, dk and dv in float32, after a forward pass in XLA."""
    options = {"is_causal": case.step.is_causal, "scale": case.step.head_dim**-0.5}

    def gradients(q, k, v, d_out, limit=None):
        lse, delta = forward_sums(q, k, v, d_out, kv_length=limit, **options)
        return attention_step_backward(
            q, k, v, d_out, lse, delta, kv_length=limit, implementation=implementation, **options
        )

    return gradients


def forward_sums(q, k, v, d_out, **options) -> tuple[jax.Array, jax.Array]:
    """Compute lse and delta, [B, H, L] float32 (float64 for float64), by a forward step in XLA."""
    carry = attention_step(q, k, v, empty_carry(q), implementation="xla", **options)
    out, lse = finish(carry, carry.o.dtype)
    return lse, jnp.einsum("blhv,blhv->bhl", out, d_out.astype(out.dtype))


def exact(case: Case, q, k, v, d_out, limit=None) -> tuple[np.ndarray, ...]:
    """Compute textbook gradients in float64: dq [B, L, H, K], dk and dv [B, M, G, K]."""
    step, scale = case.step, case.step.head_dim**-0.5
    q, d_out = q.astype(np.float64), d_out.astype(np.float64)
    k, v = (np.repeat(x.astype(np.float64), step.heads // step.kv_heads, axis=2) for x in (k, v))
    keys = np.arange(step.kv_length)
    seen = np.broadcast_to(
        keys < (step.kv_length if limit is None else limit), (q.shape[1], keys.size)
    )
    if step.is_causal:
        seen = seen & (keys <= np.arange(step.q_length)[:, None])
    scores = np.where(seen, np.einsum("blhk,bmhk->bhlm", q, k) * scale, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = np.einsum("blhk,bmhk->bhlm", d_out, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale

    def sum_groups(x):
        return x.reshape(*x.shape[:2], step.kv_heads, -1, step.head_dim).sum(3)

    dq = np.einsum("bhlm,bmhk->blhk", ds, k)
    dk, dv = (np.einsum("bhlm,blhk->bmhk", x, y) for x, y in ((ds, q), (p, d_out)))
    return dq, sum_groups(dk), sum_groups(dv)
