"""The summed cross-entropy of rows and an unembedding that never holds all logits.

Shapes: S tokens, N pieces of T tokens, D model width, V this device's share of the vocabulary.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num

from parallax.kernels.ring_attention.reference import capped
from parallax.parallel.cross_entropy import softmax_terms
from parallax.parallel.varying import vary_over, varying_axes

PIECE_BYTES = 256 << 20  # the most that a piece's logits take, in the wide dtype


class _Vocabulary(NamedTuple):
    """The mesh axes that split the vocabulary, its columns without padding, the logits' cap."""

    axes: tuple[str, ...]
    columns: int
    cap: float | None


def summed_cross_entropy(
    x: Float[Array, "*b d"],
    unembed_DV: Float[Array, "d v"],
    labels: Int[Array, "*b"],
    weights: Num[Array, "*b"],
    columns: int,
    vocab_axes: tuple[str, ...] = (),
    piece_bytes: int | None = None,
    cap: float | None = None,
) -> Float[Array, ""]:
    """Return the sum over tokens of weight x -log softmax(x @ unembed)[label].

    Args:
      x: [..., D], this device's rows after the final norm; the products have its dtype.
      unembed_DV: [D, V / n], this device's contiguous share, in any dtype; it is cast to x's.
      labels, weights: [...], token ids over the whole vocabulary, and numbers or booleans; neither
        has a gradient.
      columns: the real columns of the whole vocabulary; padding columns after them are left out.
      vocab_axes: mesh axes that split the vocabulary, major first; () if it is whole.
      piece_bytes: the most that the logits of one piece of tokens take on this device; None is
        PIECE_BYTES.
      cap: logits z become cap * tanh(z / cap).

    Returns:
      A scalar in float32 (float64 for float64 rows), of this device's tokens, the same on every
      device of `vocab_axes`. Logits have that dtype, and gradients of the unembedding add up in it.

    Cost: in n = ceil(tokens x V x wide bytes / piece_bytes) pieces or fewer, all of T tokens but a
      last one of the rest. If the vocabulary is split, each piece takes an all-reduce of [T]
      (maxima) and one of two [T] (sums, labels' logits), in the wide dtype: 3 x tokens in all. The
      backward pass adds one all-reduce of x's gradient, in x's dtype, and no product: gradients are
      made beside the loss, by 3 x 2 x tokens x D x V FLOPs for both passes, as with all logits at
      once. Between the passes it keeps them: x's (as large as x), and the unembedding's, wide.
      Without a gradient, a third of these FLOPs.
    """
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    alike = (
        varying_axes(x) | varying_axes(unembed_DV) | varying_axes(labels) | varying_axes(weights)
    )
    of_tokens, of_products = sorted(alike - {*vocab_axes}), sorted(alike | {*vocab_axes})
    labels, weights = vary_over(labels, of_tokens), vary_over(weights.astype(wide), of_tokens)
    x, unembed_DV = vary_over(x, of_products), vary_over(unembed_DV, of_products)
    tokens = math.prod(labels.shape)
    logits_bytes = tokens * unembed_DV.shape[1] * jnp.dtype(wide).itemsize
    count = max(1, -(-logits_bytes // (piece_bytes or PIECE_BYTES)))
    size = -(-tokens // count)
    x_SD, labels_S, weights_S = x.reshape(tokens, -1), labels.reshape(-1), weights.reshape(-1)
    vocabulary = _Vocabulary(vocab_axes, columns, cap)

    def pieces(first: int, last: int, size: int) -> jax.Array:
        """Return the sum of these tokens, in pieces of one size."""
        cut = (a[first:last].reshape(-1, size, *a.shape[1:]) for a in (x_SD, labels_S, weights_S))
        return _summed(vocabulary, unembed_DV.astype(wide), *cut)

    rest = tokens % size
    total = pieces(0, tokens - rest, size)
    return total + pieces(tokens - rest, tokens, rest) if rest else total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(vocabulary, unembed_DV, x_NTD, labels_NT, weights_NT):
    w_DV = unembed_DV.astype(x_NTD.dtype)

    def piece(total, piece):
        x_TD, labels_T, weights_T = piece
        log_sum_T, label_T = softmax_terms(
            _logits(vocabulary, x_TD, w_DV)[0], labels_T, vocabulary.axes
        )
        return total + ((log_sum_T - label_T) * weights_T).sum(), None

    return lax.scan(piece, _zeros((), weights_NT), (x_NTD, labels_NT, weights_NT))[0]


def _forward(vocabulary, unembed_DV, x_NTD, labels_NT, weights_NT):
    """Return the sum, and its gradients by x and the unembedding."""
    w_DV = unembed_DV.astype(x_NTD.dtype)
    wide = weights_NT.dtype

    def piece(carry, piece):
        (total, dw_DV), (x_TD, labels_T, weights_T) = carry, piece
        logits_TV, slope_TV = _logits(vocabulary, x_TD, w_DV)
        log_sum_T, label_T = softmax_terms(logits_TV, labels_T, vocabulary.axes)
        total += ((log_sum_T - label_T) * weights_T).sum()
        hit_TV = _columns(vocabulary, w_DV) == labels_T[:, None]
        d_TV = (jnp.exp(logits_TV - log_sum_T[:, None]) - hit_TV.astype(wide)) * weights_T[:, None]
        d_TV = (d_TV if slope_TV is None else d_TV * slope_TV).astype(x_TD.dtype)
        dx_TD = jnp.einsum("tv,dv->td", d_TV, w_DV)
        dw_DV += jnp.einsum("td,tv->dv", x_TD, d_TV, preferred_element_type=wide)
        return (total, dw_DV), dx_TD

    start = _zeros((), weights_NT), _zeros(w_DV.shape, w_DV, wide)
    (total, dw_DV), dx_NTD = lax.scan(piece, start, (x_NTD, labels_NT, weights_NT))
    return total, (dw_DV, dx_NTD)


def _backward(vocabulary, saved, gradient):
    dw_DV, dx_NTD = saved
    dx_NTD = (dx_NTD.astype(gradient.dtype) * gradient).astype(dx_NTD.dtype)
    return dw_DV * gradient, dx_NTD, None, None


_summed.defvjp(_forward, _backward)


def _logits(vocabulary: _Vocabulary, x_TD, w_DV):
    """Return a piece's logits in the wide dtype, -inf in the padding columns, and a cap's slope."""
    wide = jnp.float64 if x_TD.dtype == jnp.float64 else jnp.float32
    logits_TV = jnp.einsum("td,dv->tv", x_TD, w_DV, preferred_element_type=wide)
    slope_TV = None
    if vocabulary.cap is not None:
        logits_TV = capped(logits_TV, vocabulary.cap)
        slope_TV = 1 - jnp.square(logits_TV / vocabulary.cap)
    is_real = _columns(vocabulary, w_DV) < vocabulary.columns
    return jnp.where(is_real, logits_TV, -jnp.inf), slope_TV


def _columns(vocabulary: _Vocabulary, w_DV):
    """Return the place in the whole vocabulary of each of this device's columns, [1, V]."""
    width = w_DV.shape[1]
    first = lax.axis_index(vocabulary.axes) * width if vocabulary.axes else 0
    return (first + jnp.arange(width, dtype=jnp.int32))[None]


def _zeros(shape, like, dtype=None):
    """Return zeros typed as varying over the mesh axes of `like`, in its dtype or another."""
    return vary_over(jnp.zeros(shape, dtype or like.dtype), sorted(varying_axes(like)))
