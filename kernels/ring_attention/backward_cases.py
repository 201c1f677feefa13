"""The cases of the backward step that tests check, that are compiled, and that a benchmark times.

An `Operation` of `kernels.operations`, which documents each part.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from parallax.kernels.ring_attention import cases as forward
from parallax.kernels.ring_attention.api import (
    attention_step,
    attention_step_backward,
    empty_carry,
    finish,
)
from parallax.kernels.ring_attention.backward_tiles import PASSES
from parallax.kernels.ring_attention.cases import every_head, masked_scores
from parallax.kernels.validation import PLAIN, Kind

ABOUT = (
    "One step of attention, backward: dq, dk and dv in float32 from the final log-sum-exp; same "
    "masks and head dims as forward. Throughput counts five products; the kernels recompute scores "
    "for each result and so compute seven (nine for heads of 512), without atomics."
)


class Case(forward.Case):
    """The backward step of a forward case, over all of its keys."""

    __slots__ = ()

    @property
    def flops(self) -> float:
        """FLOPs of five products of visible scores; the forward step has two."""
        return 2.5 * super().flops

    @property
    def bytes_accessed(self) -> float:
        """Bytes of queries, keys, values and d_out, and of three float32 gradients, once each."""
        queries, keys = self.heads * self.q_length, self.kv_heads * self.kv_length
        elements = 2.0 * (2 * queries + 2 * keys) + 4.0 * (queries + 2 * keys)
        return self.batch * self.head_dim * elements

    @property
    def kind(self) -> Kind:
        return super().kind._replace(cut=PLAIN)  # cuts are of the forward step only


# Every pass of every head_dim: ragged ends, grouped heads, both dtypes, masks, blocks hidden whole.
SMALL = (
    Case(64, "bfloat16", 40, 450),
    Case(64, "float16", 137, 137, heads=2, is_causal=True),
    Case(128, "bfloat16", 313, 313, is_causal=True),
    Case(128, "float16", 70, 160, heads=2, limit=131),
    Case(256, "bfloat16", 72, 150, heads=4, kv_heads=2, limit=63),
    Case(256, "float16", 130, 130, is_causal=True),
    Case(512, "bfloat16", 70, 70, heads=2, is_causal=True),
    Case(512, "float16", 72, 137, limit=70),
    Case(64, "bfloat16", 150, 150, window=40, offset=70, is_causal=True),
    Case(128, "float16", 300, 300, window=90, segments=3, sinks=True, is_causal=True),
    Case(256, "bfloat16", 40, 200, segments=2, limit=170),
    Case(512, "bfloat16", 150, 150, window=20, segments=2, is_causal=True),
)
# Programs differ by head_dim, mask and dtype: the largest of each head_dim, the other dtype where
# registers are scarcest, and all masks at once. What else is forward's is of the forward step only.
SHIPPED = tuple(
    Case(*step)
    for step in forward.SHIPPED
    if step.tile is None and step.window is None and not step.first
    and (step.is_causal or (step.limit is None and step.head_dim >= 256))
) + tuple(
    Case(
        head_dim, "bfloat16", 10_000, 10_000, heads=8, kv_heads=4, is_causal=True, window=4096,
        segments=8,
    )
    for head_dim in PASSES
)  # fmt: skip
TIMED = tuple(Case(*step) for step in forward.TIMED)


def inputs(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q, k, v and d_out, [B, tokens, heads, head_dim], and arrays of `Case.named`."""
    q, k, v, _, _, *given = forward.inputs(case, seed)
    d_out = np.random.default_rng(seed + 1).normal(size=q.shape).astype(q.dtype)
    return q, k, v, d_out, *given


def program(case: Case, implementation: str | None) -> Callable[..., tuple[jax.Array, ...]]:
    """Return a function to dq, dk and dv in float32, after a forward pass in XLA."""

    def gradients(q, k, v, d_out, *arrays):
        mask = case.options | case.named(arrays)
        sums = forward_sums(q, k, v, d_out, **mask)
        mask.pop("sinks", None)  # are in lse
        return attention_step_backward(q, k, v, d_out, *sums, implementation=implementation, **mask)

    return gradients


def forward_sums(q, k, v, d_out, sinks=None, **options) -> tuple[jax.Array, jax.Array]:
    """Compute lse and delta, [B, H, L] float32 (float64 for float64), by a forward step in XLA."""
    carry = attention_step(q, k, v, empty_carry(q, sinks=sinks), implementation="xla", **options)
    out, lse = finish(carry, carry.o.dtype)
    return lse, jnp.einsum("blhv,blhv->bhl", out, d_out.astype(out.dtype))


def exact(case: Case, q, k, v, d_out, *arrays) -> tuple[np.ndarray, ...]:
    """Compute textbook gradients in float64: dq [B, L, H, K], dk and dv [B, M, G, K]."""
    queries, keys, extras = np.arange(case.q_length), np.arange(case.kv_length), case.named(arrays)
    scores = masked_scores(case, q, k, queries, keys, extras)
    lse = np.asarray(logsumexp(scores, axis=-1))
    if "sinks" in extras:
        lse = np.logaddexp(lse, extras["sinks"][:, None].astype(np.float64))
    lse = np.where(np.isneginf(lse), np.inf, lse)  # sees no key: has no weights
    out = np.einsum("bhlm,bmhk->blhk", np.exp(scores - lse[..., None]), every_head(case, v))
    delta = np.einsum("blhk,blhk->bhl", out, d_out.astype(np.float64))
    return exact_rows(case, queries, keys, q, k, v, d_out, lse, delta, *arrays)


def exact_rows(
    case: Case, some_queries, some_keys, q, k, v, d_out, lse, delta, *arrays
) -> tuple[np.ndarray, ...]:
    """Compute dq of some queries, and dk and dv of some keys, in float64."""
    k_all, v_all, extras = every_head(case, k), every_head(case, v), case.named(arrays)
    q_all, d_out, lse, delta = (np.asarray(x, np.float64) for x in (q, d_out, lse, delta))

    def softmax(queries, keys):
        """Return P and dS, [B, H, queries, keys]."""
        scores = masked_scores(case, q, k, queries, keys, extras)
        p = np.exp(scores - lse[:, :, queries, None])
        dp = np.einsum("blhk,bmhk->bhlm", d_out[:, queries], v_all[:, keys])
        return p, p * (dp - delta[:, :, queries, None]) * case.head_dim**-0.5

    def of_keys(weights, x):
        gradient = np.einsum("bhlm,blhk->bmhk", weights, x)
        return gradient.reshape(*gradient.shape[:2], case.kv_heads, -1, x.shape[-1]).sum(3)

    ds = softmax(some_queries, np.arange(case.kv_length))[1]
    p, ds_of_keys = softmax(np.arange(case.q_length), some_keys)
    dq = np.einsum("bhlm,bmhk->blhk", ds, k_all)
    return dq, of_keys(ds_of_keys, q_all), of_keys(p, d_out)
