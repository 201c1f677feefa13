"""The step in plain XLA, by blocks of queries and keys, never holding L x M scores.

The visible block pairs are a static list, and one scan visits it: masked blocks cost nothing.
Shapes: B batch, L queries, M keys, G key/value heads, R query heads of each, K head_dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Most tokens handled as one block. Beyond, blocks shrink to BLOCK: with 20 of them at 10,000 tokens
# a causal mask costs 0.525 of the full product.
WHOLE = 1024
BLOCK = 512


class Mask(NamedTuple):
    """The mask that says which keys a query sees; see `api.attention_step`."""

    is_causal: bool
    q_segment_ids: jax.Array | None
    kv_segment_ids: jax.Array | None
    kv_length: jax.Array | None
    window: int | None = None
    offset: int | jax.Array = 0


def step(
    q, k, v, o, m, l, *, mask: Mask, scale: float, partial_over: str | None,
    cap: float | None = None,
):  # fmt: skip
    """Run the forward step of `api.attention_step`; return (o, m, l)."""
    q = _group_heads(q, k.shape[2])
    shape, rows = o.shape, m.shape
    o, m, l = (x.reshape(x.shape[0], k.shape[2], -1, *x.shape[2:]) for x in (o, m, l))
    blocks = _Blocks(q.shape[1], k.shape[1], mask)
    q, k, v = blocks.pad_q(q, 1), blocks.pad_kv(k, 1), blocks.pad_kv(v, 1)
    o, m, l = blocks.pad_q(o, 3), blocks.pad_q(m, 3), blocks.pad_q(l, 3)

    def pair(carry, ij):
        i, j = ij
        o, m, l = carry
        scores = _scores(blocks.q(q, i, 1), blocks.kv(k, j, 1), scale, partial_over, cap)
        scores = blocks.hide(scores, i, j, -jnp.inf)
        o_i, m_i, l_i = blocks.q(o, i, 3), blocks.q(m, i, 3), blocks.q(l, i, 3)
        m_new = jnp.maximum(m_i, scores.max(-1))
        # A row that has seen no key yet keeps m = -inf; 0 replaces it to avoid inf - inf.
        m_safe = jnp.where(jnp.isneginf(m_new), 0, m_new)
        p = jnp.exp(scores - m_safe[..., None])
        shrink = jnp.exp(m_i - m_safe)
        l_i = l_i * shrink + p.sum(-1)
        pv = jnp.einsum(
            "bgrlm,bmgk->bgrlk", p.astype(v.dtype), blocks.kv(v, j, 1),
            preferred_element_type=o.dtype,
        )  # fmt: skip
        o_i = o_i * shrink[..., None] + pv
        return (
            blocks.put_q(o, o_i, i, 3), blocks.put_q(m, m_new, i, 3), blocks.put_q(l, l_i, i, 3),
        ), None  # fmt: skip

    o, m, l = blocks.walk(pair, (o, m, l))
    o, m, l = (lax.slice_in_dim(x, 0, blocks.q_length, axis=3) for x in (o, m, l))
    return o.reshape(shape), m.reshape(rows), l.reshape(rows)


def step_backward(
    q, k, v, d_out, lse, delta, *, mask: Mask, scale: float, partial_over: str | None,
    cap: float | None = None,
):  # fmt: skip
    """Run the backward step of `api.attention_step_backward`; return (dq, dk, dv)."""
    q_shape, kv_heads, dtype = q.shape, k.shape[2], lse.dtype
    q, d_out = _group_heads(q, kv_heads), _group_heads(d_out, kv_heads)
    lse, delta = (x.reshape(x.shape[0], kv_heads, -1, x.shape[2]) for x in (lse, delta))
    blocks = _Blocks(q.shape[1], k.shape[1], mask)
    q, d_out = blocks.pad_q(q, 1), blocks.pad_q(d_out, 1)
    k, v = blocks.pad_kv(k, 1), blocks.pad_kv(v, 1)
    lse, delta = blocks.pad_q(lse, 3), blocks.pad_q(delta, 3)

    def pair(carry, ij):
        i, j = ij
        dq, dk, dv = carry
        q_i, do_i = blocks.q(q, i, 1), blocks.q(d_out, i, 1)
        k_j, v_j = blocks.kv(k, j, 1), blocks.kv(v, j, 1)
        scores = _scores(q_i, k_j, scale, partial_over, cap)
        p = jnp.exp(blocks.hide(scores, i, j, -jnp.inf) - blocks.q(lse, i, 3)[..., None])
        p = blocks.hide(p, i, j, 0)
        dv_j = _einsum("bgrlm,blgrk->bmgk", p.astype(v.dtype), do_i, dtype)
        dp = _whole(_einsum("blgrk,bmgk->bgrlm", do_i, v_j, dtype), partial_over)
        ds = p * (dp - blocks.q(delta, i, 3)[..., None]) * scale
        if cap is not None:
            ds = ds * (1 - jnp.square(scores / cap))
        ds = ds.astype(q.dtype)
        dq_i = _einsum("bgrlm,bmgk->blgrk", ds, k_j, dtype)
        dk_j = _einsum("bgrlm,blgrk->bmgk", ds, q_i, dtype)
        return (
            blocks.put_q(dq, blocks.q(dq, i, 1) + dq_i, i, 1),
            blocks.put_kv(dk, blocks.kv(dk, j, 1) + dk_j, j, 1),
            blocks.put_kv(dv, blocks.kv(dv, j, 1) + dv_j, j, 1),
        ), None

    start = tuple(x.astype(dtype) * 0 for x in (q, k, v))
    dq, dk, dv = blocks.walk(pair, start)
    dq = lax.slice_in_dim(dq, 0, blocks.q_length, axis=1).reshape(q_shape)
    dk, dv = (lax.slice_in_dim(x, 0, blocks.kv_length, axis=1) for x in (dk, dv))
    return dq, dk, dv


def score_elements(
    q_length: int, kv_length: int, is_causal: bool, window: int | None = None, offset: int = 0
) -> int:
    """Count the scores of one head that a step computes: its visible blocks, whole and padded."""
    (q_count, q_size), (kv_count, kv_size) = _cut(q_length), _cut(kv_length)
    mask = Mask(is_causal, None, None, None, window, offset)
    return len(_visible(mask, q_count, q_size, kv_count, kv_size)) * q_size * kv_size


def check_lengths(q_length: int, kv_length: int, is_causal: bool) -> None:
    """Raise ValueError if the mask is causal and the lengths differ."""
    if is_causal and q_length != kv_length:
        raise ValueError(
            f"attention_step: is_causal pairs query i with key i, but there are {q_length} "
            f"queries and {kv_length} keys. Pass blocks of equal length."
        )


def block_size(length: int) -> int:
    """Return the number of tokens per block of queries or keys."""
    return _cut(length)[1]


def accumulator_dtype(dtype) -> jnp.dtype:
    """Return the accumulator's dtype: float32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _einsum(spec, a, b, dtype):
    return jnp.einsum(spec, a, b, preferred_element_type=dtype)


def _scores(q_i, k_j, scale, partial_over, cap):
    dtype = accumulator_dtype(q_i.dtype)
    scores = _whole(_einsum("blgrk,bmgk->bgrlm", q_i, k_j, dtype), partial_over)
    return capped(scores * jnp.asarray(scale, dtype), cap)


def capped(scores: jax.Array, cap: float | None) -> jax.Array:
    """Return cap * tanh(scores / cap); None leaves the scores."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def _visible(mask: Mask, q_count: int, q_size: int, kv_count: int, kv_size: int):
    """Return the pairs (query block, key block) in which some query may see some key.

    An offset that only the device knows may leave any pair visible.
    """

    def sees(i: int, j: int) -> bool:
        if mask.is_causal and mask.window is None:
            return j <= i
        if mask.window is None or not isinstance(mask.offset, int):
            return True
        # The least and the largest distance from a key back to a query.
        nearest = mask.offset + i * q_size - ((j + 1) * kv_size - 1)
        farthest = mask.offset + (i + 1) * q_size - 1 - j * kv_size
        return farthest >= 0 and nearest < mask.window

    return [(i, j) for i in range(q_count) for j in range(kv_count) if sees(i, j)]


def _whole(partial, axis: str | None):
    """Sum a product over this device's slice of head_dim over the devices of all slices."""
    return partial if axis is None else lax.psum(partial, axis)


def _group_heads(x_BLHK, kv_heads):
    b, length, heads, width = x_BLHK.shape
    return x_BLHK.reshape(b, length, kv_heads, heads // kv_heads, width)


class _Blocks:
    """The equal blocks of queries and keys, and which pairs of them are visible."""

    def __init__(self, q_length: int, kv_length: int, mask: Mask):
        self.q_length, self.kv_length, self.mask = q_length, kv_length, mask
        self.q_count, self.q_size = _cut(q_length)
        self.kv_count, self.kv_size = _cut(kv_length)
        check_lengths(q_length, kv_length, mask.is_causal and mask.window is None)
        self.segments = None
        if mask.q_segment_ids is not None and mask.kv_segment_ids is not None:
            self.segments = self.pad_q(mask.q_segment_ids, 1), self.pad_kv(mask.kv_segment_ids, 1)

    def pad_q(self, x, axis):
        return self._pad(x, axis, self.q_count * self.q_size)

    def pad_kv(self, x, axis):
        return self._pad(x, axis, self.kv_count * self.kv_size)

    def q(self, x, i, axis):
        return self._block(x, i, self.q_count, self.q_size, axis)

    def kv(self, x, j, axis):
        return self._block(x, j, self.kv_count, self.kv_size, axis)

    def put_q(self, x, block, i, axis):
        return self._put(x, block, i, self.q_count, self.q_size, axis)

    def put_kv(self, x, block, j, axis):
        return self._put(x, block, j, self.kv_count, self.kv_size, axis)

    def hide(self, x, i, j, value):
        """Set x [B, G, R, q block, kv block] to `value` where the query does not see the key."""
        rows = i * self.q_size + jnp.arange(self.q_size, dtype=jnp.int32)[:, None]
        columns = j * self.kv_size + jnp.arange(self.kv_size, dtype=jnp.int32)[None, :]
        seen = None
        if self.mask.window is not None:
            back = rows + self.mask.offset - columns
            seen = (back >= 0) & (back < self.mask.window)
        elif self.mask.is_causal:
            seen = columns <= rows
        if self.mask.kv_length is not None or self.kv_count * self.kv_size != self.kv_length:
            limit = self.kv_length if self.mask.kv_length is None else self.mask.kv_length
            within = jnp.broadcast_to(columns < limit, (self.q_size, self.kv_size))
            seen = within if seen is None else seen & within
        if seen is not None:
            seen = seen[None, None, None]
        if self.segments is not None:
            q_ids, kv_ids = self.q(self.segments[0], i, 1), self.kv(self.segments[1], j, 1)
            same = (q_ids[:, :, None] == kv_ids[:, None, :])[:, None, None]
            seen = same if seen is None else seen & same
        return x if seen is None else jnp.where(seen, x, jnp.asarray(value, x.dtype))

    @property
    def visible(self) -> list[tuple[int, int]]:
        """Pairs (query block, key block) in which some query may see some key."""
        return _visible(self.mask, self.q_count, self.q_size, self.kv_count, self.kv_size)

    def walk(self, pair, carry):
        """Fold `pair` over the visible block pairs."""
        visible = self.visible
        if not visible:
            return carry
        if len(visible) == 1:
            return pair(carry, visible[0])[0]
        i, j = np.array(visible, np.int32).T
        return lax.scan(pair, carry, (jnp.asarray(i), jnp.asarray(j)))[0]

    @staticmethod
    def _pad(x, axis, length):
        if x.shape[axis] == length:
            return x
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, length - x.shape[axis])
        return jnp.pad(x, widths)

    @staticmethod
    def _block(x, i, count, size, axis):
        return x if count == 1 else lax.dynamic_slice_in_dim(x, i * size, size, axis)

    @staticmethod
    def _put(x, block, i, count, size, axis):
        return block if count == 1 else lax.dynamic_update_slice_in_dim(x, block, i * size, axis)


def _cut(length: int) -> tuple[int, int]:
    """Return the number and size of equal blocks over `length` tokens; the last may be padded."""
    if length <= WHOLE:
        return 1, length
    count = -(-length // BLOCK)
    while length % count and count < 2 * (length // BLOCK):
        count += 1
    if length % count:
        count = -(-length // BLOCK)
    return count, -(-length // count)
