"""The step in plain XLA, by blocks of queries and keys, never holding L x M scores.

The visible block pairs are a static list, and one scan visits it: masked blocks cost nothing.
Shapes: B batch, L queries, M keys, G key/value heads, R query heads of each, K head_dim.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from parallax.kernels.ring_attention.mask import Mask

# Most tokens handled as one block. Beyond, blocks shrink to BLOCK: with 20 of them at 10,000 tokens
# a causal mask costs 0.525 of the full product.
WHOLE = 1024
BLOCK = 512


def step(
    q, k, v, o, m, l, *, mask: Mask, scale: float, partial_over: str | None,
    cap: float | None = None,
):  # fmt: skip
    """Run the forward step of `api.attention_step`; return (o, m, l)."""
    shape, rows = o.shape, m.shape
    pairs = _Pairs(q, k, mask, scale, partial_over, cap)
    queries, keys = pairs.queries, pairs.keys
    v = keys.pad(v, 1)
    o, m, l = (
        queries.pad(x.reshape(x.shape[0], k.shape[2], -1, *x.shape[2:]), 3) for x in (o, m, l)
    )

    def pair(carry, i, j):
        o_i, m_i, l_i = (queries.take(x, i, 3) for x in carry)
        scores = pairs.hide(pairs.scores(i, j), i, j, -jnp.inf)
        m_new = jnp.maximum(m_i, scores.max(-1))
        # A row that has seen no key yet keeps m = -inf; 0 replaces it to avoid inf - inf.
        m_safe = jnp.where(jnp.isneginf(m_new), 0, m_new)
        p = jnp.exp(scores - m_safe[..., None])
        shrink = jnp.exp(m_i - m_safe)
        pv = _einsum("bgrlm,bmgk->bgrlk", p.astype(v.dtype), keys.take(v, j, 1), o.dtype)
        new = o_i * shrink[..., None] + pv, m_new, l_i * shrink + p.sum(-1)
        return tuple(queries.put(x, x_i, i, 3) for x, x_i in zip(carry, new, strict=True))

    o, m, l = (queries.trim(x, 3) for x in pairs.walk(pair, (o, m, l)))
    return o.reshape(shape), m.reshape(rows), l.reshape(rows)


def step_backward(
    q, k, v, d_out, lse, delta, *, mask: Mask, scale: float, partial_over: str | None,
    cap: float | None = None,
):  # fmt: skip
    """Run the backward step of `api.attention_step_backward`; return (dq, dk, dv)."""
    shape, kv_heads, dtype = q.shape, k.shape[2], lse.dtype
    pairs = _Pairs(q, k, mask, scale, partial_over, cap)
    queries, keys = pairs.queries, pairs.keys
    d_out, v = queries.pad(_group_heads(d_out, kv_heads), 1), keys.pad(v, 1)
    lse, delta = (
        queries.pad(x.reshape(x.shape[0], kv_heads, -1, x.shape[2]), 3) for x in (lse, delta)
    )

    def pair(carry, i, j):
        dq, dk, dv = carry
        q_i, do_i = queries.take(pairs.q, i, 1), queries.take(d_out, i, 1)
        k_j, v_j = keys.take(pairs.k, j, 1), keys.take(v, j, 1)
        lse_i, delta_i = (queries.take(x, i, 3)[..., None] for x in (lse, delta))
        scores = pairs.scores(i, j)
        p = jnp.exp(pairs.hide(scores, i, j, -jnp.inf) - lse_i)
        p = pairs.hide(p, i, j, 0)
        dp = _whole(_einsum("blgrk,bmgk->bgrlm", do_i, v_j, dtype), partial_over)
        ds = p * (dp - delta_i) * scale
        if cap is not None:
            ds = ds * (1 - jnp.square(scores / cap))
        ds = ds.astype(q.dtype)
        return (
            queries.add(dq, _einsum("bgrlm,bmgk->blgrk", ds, k_j, dtype), i, 1),
            keys.add(dk, _einsum("bgrlm,blgrk->bmgk", ds, q_i, dtype), j, 1),
            keys.add(dv, _einsum("bgrlm,blgrk->bmgk", p.astype(v.dtype), do_i, dtype), j, 1),
        )

    start = tuple(x.astype(dtype) * 0 for x in (pairs.q, pairs.k, v))
    dq, dk, dv = pairs.walk(pair, start)
    return queries.trim(dq, 1).reshape(shape), keys.trim(dk, 1), keys.trim(dv, 1)


def score_elements(
    q_length: int, kv_length: int, is_causal: bool, window: int | None = None, offset: int = 0
) -> int:
    """Count the scores of one head that a step computes: its visible blocks, whole and padded."""
    mask, queries, keys = (
        Mask(is_causal, window=window, offset=offset),
        *map(_cut, (q_length, kv_length)),
    )
    return len(_visible(mask, queries, keys)) * queries.size * keys.size


def block_size(length: int) -> int:
    """Return the number of tokens per block of queries or keys."""
    return _cut(length).size


def accumulator_dtype(dtype) -> jnp.dtype:
    """Return the accumulator's dtype: float32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def capped(scores: jax.Array, cap: float | None) -> jax.Array:
    """Return cap * tanh(scores / cap); None leaves the scores."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def _einsum(spec, a, b, dtype):
    return jnp.einsum(spec, a, b, preferred_element_type=dtype)


def _whole(partial, axis: str | None):
    """Sum a product over this device's slice of head_dim over the devices of all slices."""
    return partial if axis is None else lax.psum(partial, axis)


def _group_heads(x_BLHK, kv_heads):
    b, length, heads, width = x_BLHK.shape
    return x_BLHK.reshape(b, length, kv_heads, heads // kv_heads, width)


class _Blocks(NamedTuple):
    """The equal blocks of a token axis; the last may be padded."""

    length: int
    number: int
    size: int

    def pad(self, x, axis):
        missing = self.number * self.size - self.length
        widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
        return jnp.pad(x, widths) if missing else x

    def trim(self, x, axis):
        return lax.slice_in_dim(x, 0, self.length, axis=axis)

    def take(self, x, i, axis):
        """Return block i."""
        if self.number == 1:
            return x
        return lax.dynamic_slice_in_dim(x, i * self.size, self.size, axis)

    def put(self, x, block, i, axis):
        """Return x with another block i."""
        if self.number == 1:
            return block
        return lax.dynamic_update_slice_in_dim(x, block, i * self.size, axis)

    def add(self, x, block, i, axis):
        return self.put(x, self.take(x, i, axis) + block, i, axis)


class _Pairs:
    """The pairs of a block of queries and a block of keys, their scores, and which are visible."""

    def __init__(self, q, k, mask: Mask, scale: float, partial_over: str | None, cap: float | None):
        lengths = q.shape[1], k.shape[1]
        mask.check_lengths(*lengths)
        self.mask, self.scale, self.partial_over, self.cap = mask, scale, partial_over, cap
        self.queries, self.keys = map(_cut, lengths)
        self.q = self.queries.pad(_group_heads(q, k.shape[2]), 1)
        self.k = self.keys.pad(k, 1)
        self.ids = None
        if mask.q_segment_ids is not None and mask.kv_segment_ids is not None:
            self.ids = (
                self.queries.pad(mask.q_segment_ids, 1),
                self.keys.pad(mask.kv_segment_ids, 1),
            )

    def scores(self, i, j):
        """Return scores [B, G, R, q block, kv block], capped but not masked."""
        dtype = accumulator_dtype(self.q.dtype)
        q_i, k_j = self.queries.take(self.q, i, 1), self.keys.take(self.k, j, 1)
        scores = _whole(_einsum("blgrk,bmgk->bgrlm", q_i, k_j, dtype), self.partial_over)
        return capped(scores * jnp.asarray(self.scale, dtype), self.cap)

    def hide(self, x, i, j, value):
        """Set x [B, G, R, q block, kv block] to `value` where the query does not see the key."""
        queries, keys, mask = self.queries, self.keys, self.mask
        rows = i * queries.size + jnp.arange(queries.size, dtype=jnp.int32)[:, None]
        columns = j * keys.size + jnp.arange(keys.size, dtype=jnp.int32)[None, :]
        conditions: list[Any] = []
        if mask.window is not None:
            back = rows + mask.offset - columns
            conditions += [back >= 0, back < mask.window]
        elif mask.is_causal:
            conditions.append(columns <= rows)
        if mask.kv_length is not None or keys.number * keys.size != keys.length:
            conditions.append(columns < mask.limit(keys.length))
        conditions = [seen[None, None, None] for seen in conditions]
        if self.ids is not None:
            q_ids, kv_ids = queries.take(self.ids[0], i, 1), keys.take(self.ids[1], j, 1)
            conditions.append((q_ids[:, :, None] == kv_ids[:, None, :])[:, None, None])
        if not conditions:
            return x
        return jnp.where(
            functools.reduce(operator.and_, conditions), x, jnp.asarray(value, x.dtype)
        )

    def walk(self, pair: Callable, carry):
        """Fold `pair(carry, i, j)` over the visible pairs."""
        visible = _visible(self.mask, self.queries, self.keys)
        if len(visible) <= 1:
            return pair(carry, *visible[0]) if visible else carry
        i, j = map(jnp.asarray, np.array(visible, np.int32).T)
        return lax.scan(lambda carry, ij: (pair(carry, *ij), None), carry, (i, j))[0]


def _visible(mask: Mask, queries: _Blocks, keys: _Blocks) -> list[tuple[int, int]]:
    """Return the pairs of blocks in which some query may see some key, as far as the host knows."""
    firsts = np.arange(queries.number) * queries.size
    seen = mask.known(keys.length).visits(firsts, queries.size, keys.size, keys.length)
    ranges = (
        range(first, first + count)
        for first, count in zip(*(x.tolist() for x in seen), strict=True)
    )
    return [(i, j) for i, blocks in enumerate(ranges) for j in blocks]


def _cut(length: int) -> _Blocks:
    """Return equal blocks over `length` tokens."""
    if length <= WHOLE:
        return _Blocks(length, 1, length)
    count = -(-length // BLOCK)
    while length % count and count < 2 * (length // BLOCK):
        count += 1
    if length % count:
        count = -(-length // BLOCK)
    return _Blocks(length, count, -(-length // count))
