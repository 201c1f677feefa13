"""The cases of the backward step that tests check, that are compiled, and that a benchmark times.

An `Operation` of `kernels.operations`, which documents each part.
"""

from collections.abc import Callable
from typing import NamedTuple

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
        forward.Case(64, "bfloat16", 150, 150, window=40, offset=70, is_causal=True),
        forward.Case(128, "float16", 300, 300, window=90, segments=3, sinks=True, is_causal=True),
        forward.Case(256, "bfloat16", 40, 200, segments=2, limit=170),
        forward.Case(512, "bfloat16", 150, 150, window=20, segments=2, is_causal=True),
    )
)
# Programs differ by head_dim, mask and dtype: the largest of each head_dim, the other dtype where
# registers are scarcest, and all masks at once. What else is forward's is of the forward step only.
SHIPPED = tuple(
    Case(step)
    for step in forward.SHIPPED
    if step.tile is None and step.window is None and not step.first
    and (step.is_causal or (step.limit is None and step.head_dim >= 256))
) + tuple(
    Case(
        forward.Case(
            head_dim, "bfloat16", 10_000, 10_000, heads=8, kv_heads=4, is_causal=True,
            window=4096, segments=8,
        )
    )
    for head_dim in PASSES
)  # fmt: skip
TIMED = tuple(map(Case, forward.TIMED))


def inputs(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw q, k, v and d_out, [B, tokens, heads, head_dim], and the arrays of `_given`."""
    q, k, v, _, _, *given = forward.inputs(case.step, seed)
    d_out = np.random.default_rng(seed + 1).normal(size=q.shape).astype(q.dtype)
    return q, k, v, d_out, *given


def _given(case: Case, arrays) -> dict:
    """Return by name the arguments that not every case has."""
    names = ["kv_length"] * (case.step.limit is not None)
    names += ["q_segment_ids", "kv_segment_ids"] * bool(case.step.segments)
    return dict(zip(names + ["sinks"] * case.step.sinks, arrays, strict=True))


def options(case: Case) -> dict:
    """Return what is static of the mask, and the scale, as arguments of a step."""
    step = case.step
    return {
        "is_causal": step.is_causal, "window": step.window, "offset": step.offset,
        "scale": step.head_dim**-0.5,
    }  # fmt: skip


def program(case: Case, implementation: str | None) -> Callable[..., tuple[jax.Array, ...]]:
    """Return a function to dq, dk and dv in float32, after a forward pass in XLA."""

    def gradients(q, k, v, d_out, *arrays):
        mask = options(case) | _given(case, arrays)
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
    queries, keys = np.arange(case.step.q_length), np.arange(case.step.kv_length)
    scores = _scores(case, q, k, queries, keys, arrays)
    lse = np.asarray(logsumexp(scores, axis=-1))
    sinks = _given(case, arrays).get("sinks")
    if sinks is not None:
        lse = np.logaddexp(lse, sinks[:, None].astype(np.float64))
    lse = np.where(np.isneginf(lse), np.inf, lse)  # sees no key: has no weights
    out = np.einsum("bhlm,bmhk->blhk", np.exp(scores - lse[..., None]), _every_head(case, v))
    delta = np.einsum("blhk,blhk->bhl", out, d_out.astype(np.float64))
    return exact_rows(case, queries, keys, q, k, v, d_out, lse, delta, *arrays)


def exact_rows(
    case: Case, some_queries, some_keys, q, k, v, d_out, lse, delta, *arrays
) -> tuple[np.ndarray, ...]:
    """Compute dq of some queries, and dk and dv of some keys, in float64."""
    scale, k_all, v_all = case.step.head_dim**-0.5, _every_head(case, k), _every_head(case, v)
    q_all, d_out, lse, delta = (np.asarray(x, np.float64) for x in (q, d_out, lse, delta))

    def softmax(queries, keys):
        """Return P and dS, [B, H, queries, keys]."""
        p = np.exp(_scores(case, q, k, queries, keys, arrays) - lse[:, :, queries, None])
        dp = np.einsum("blhk,bmhk->bhlm", d_out[:, queries], v_all[:, keys])
        return p, p * (dp - delta[:, :, queries, None]) * scale

    def of_keys(weights, x):
        gradient = np.einsum("bhlm,blhk->bmhk", weights, x)
        return gradient.reshape(*gradient.shape[:2], case.step.kv_heads, -1, x.shape[-1]).sum(3)

    ds = softmax(some_queries, np.arange(case.step.kv_length))[1]
    p, ds_of_keys = softmax(np.arange(case.step.q_length), some_keys)
    dq = np.einsum("bhlm,bmhk->blhk", ds, k_all)
    return dq, of_keys(ds_of_keys, q_all), of_keys(p, d_out)


def _every_head(case: Case, x: np.ndarray) -> np.ndarray:
    """Repeat keys or values for each query head, in float64."""
    return np.repeat(x.astype(np.float64), case.step.heads // case.step.kv_heads, axis=2)


def _scores(case: Case, q, k, queries, keys, arrays) -> np.ndarray:
    """Compute masked scores [B, H, queries, keys] of some queries and keys, in float64."""
    step, given = case.step, _given(case, arrays)
    seen = keys < given.get("kv_length", step.kv_length)
    back = step.offset + queries[:, None] - keys
    if step.is_causal:
        seen = seen & (back >= 0)
    if step.window is not None:
        seen = seen & (back < step.window)
    if step.segments:
        q_ids, kv_ids = given["q_segment_ids"][:, queries], given["kv_segment_ids"][:, keys]
        seen = (seen & (q_ids[:, :, None] == kv_ids[:, None]))[:, None]
    rows, columns = q.astype(np.float64)[:, queries], _every_head(case, k)[:, keys]
    scores = np.einsum("blhk,bmhk->bhlm", rows, columns) * step.head_dim**-0.5
    return np.where(seen, scores, -np.inf)
