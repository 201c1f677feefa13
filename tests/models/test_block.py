"""Norms, rotary positions and the MLP against independent formulas: exactness tests share them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parallax.models.block import Attention, Mlp
from parallax.models.norms import Norm
from parallax.models.rope import rotate, rotation
from parallax.parallel.split import UNSPLIT
from tests.models.test_transformer import TINY


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def quiet(make):
    with nnx.use_eager_sharding(False):
        return make()


@pytest.mark.parametrize(
    ("kind", "flax_norm"), [("rmsnorm", nnx.RMSNorm), ("layernorm", nnx.LayerNorm)]
)
def test_norms_are_flax_norms(kind, flax_norm):
    x, scale, shift = draw((3, 5, 32), 0) * 4 + 1, draw((32,), 1), draw((32,), 2)
    mine = quiet(lambda: Norm(TINY.replace(norm=kind)))
    theirs = quiet(
        lambda: flax_norm(
            32,
            epsilon=TINY.norm_epsilon,
            rngs=nnx.Rngs(0),
            param_dtype=jnp.float64,
            **({"use_fast_variance": False} if kind == "layernorm" else {}),
        )
    )
    mine.scale[...] = theirs.scale[...] = scale
    if kind == "layernorm":
        mine.shift[...] = theirs.bias[...] = shift
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = theirs(x)
    np.testing.assert_allclose(mine(x), expected, rtol=1e-12)


def test_rotation_turns_pairs_by_their_position():
    x = draw((1, 6, 1, 8), 0)
    positions = jnp.arange(6, dtype=jnp.int32)[None]
    turned = np.asarray(rotate(x, rotation(positions, 8, 100.0, "float64")))
    pairs = np.asarray(x)[..., ::2] + 1j * np.asarray(x)[..., 1::2]
    angles = np.arange(6)[:, None] * 100.0 ** (-np.arange(4) / 4)
    expected = pairs * np.exp(1j * angles)[None, :, None]
    np.testing.assert_allclose(turned[..., ::2], expected.real, atol=1e-14)
    np.testing.assert_allclose(turned[..., 1::2], expected.imag, atol=1e-14)


def test_scores_depend_on_distance_only():
    q, k = draw((1, 1, 1, 8), 0), draw((1, 1, 1, 8), 1)

    def score(i, j):
        at = [rotation(jnp.asarray([[p]], jnp.int32), 8, 1e4, "float64") for p in (i, j)]
        return float((rotate(q, at[0]) * rotate(k, at[1])).sum())

    assert score(7, 3) == pytest.approx(score(104, 100), rel=1e-12)
    assert score(7, 3) != pytest.approx(score(7, 4), rel=1e-3)


@pytest.mark.parametrize("kind", ["gelu", "gated"])
def test_mlp_by_formula(kind):
    mlp = quiet(lambda: Mlp(TINY.replace(mlp=kind), rngs=nnx.Rngs(params=0)))
    x = draw((2, 3, 32), 0)
    hidden = x @ mlp.up_DF[...]
    hidden = jax.nn.gelu(hidden) if kind == "gelu" else hidden * jax.nn.silu(x @ mlp.gate_DF[...])
    np.testing.assert_allclose(mlp(x, UNSPLIT), hidden @ mlp.down_FD[...], rtol=1e-12)


def test_grouped_queries_read_their_own_key_and_value_head():
    attention = quiet(lambda: Attention(TINY.replace(positions="none"), rngs=nnx.Rngs(params=0)))
    x = draw((2, 5, 32), 0)
    q = jnp.einsum("bld,dhk->bhlk", x, attention.q_DHK[...])
    k = jnp.einsum("bld,dgk->bglk", x, attention.k_DGK[...])
    v = jnp.einsum("bld,dgk->bglk", x, attention.v_DGK[...])
    out = 0.0
    for head in range(4):
        scores = q[:, head] @ k[:, head // 2].swapaxes(1, 2) / 8**0.5
        scores = jnp.where(jnp.tril(jnp.ones((1, 5, 5), bool)), scores, -jnp.inf)
        mixed = jax.nn.softmax(scores, axis=-1) @ v[:, head // 2]
        out = out + mixed @ attention.out_HKD[...][head]
    np.testing.assert_allclose(attention(x, None, None, UNSPLIT), out, rtol=1e-11, atol=1e-13)
