"""Norms, rotary positions and the MLP against independent formulas: exactness tests share them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from parallax.meshes.mesh import MeshSpec
from parallax.models.block import Attention, Mlp
from parallax.models.layer_kinds import EVERY_TOKEN
from parallax.models.norms import HeadNorm, Norm
from parallax.models.rope import rotate, rotation
from parallax.parallel.attention_parts import Local
from parallax.parallel.split import UNSPLIT, Split
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import two_level
from parallax.workload import Workload
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


def on_slices(local, head_dim=16, slices=4):
    """`local(split, *arrays)` on devices that hold slices of the last dim, split and arrays."""
    mesh = MeshSpec({"head_slice": slices})
    split = Split({"head_dim": ("head_slice",)}, dict(mesh.axes), Local())
    spec = P(None, None, None, "head_slice")

    def run(*arrays):
        return jax.jit(
            jax.shard_map(
                lambda *x: local(split, *x), mesh=mesh.build(jax.devices()[:slices]),
                in_specs=spec, out_specs=spec,
            )
        )(*arrays)  # fmt: skip

    return run


def test_a_slice_turns_its_own_pairs():
    x, positions = draw((2, 6, 3, 16), 0), jnp.arange(6, dtype=jnp.int32)[None]
    found = on_slices(lambda split, x: rotate(x, rotation(positions, 16, 1e4, x.dtype, split)))(x)
    np.testing.assert_allclose(found, rotate(x, rotation(positions, 16, 1e4, x.dtype)), rtol=1e-14)


def test_slices_that_would_cut_a_pair_are_refused():
    config = TINY.replace(num_heads=8, num_kv_heads=8, head_dim=4, vocab_size=64)
    strategy = two_level(2, 4)
    with pytest.raises(ValueError, match=r"head_dim 4 over 4 devices .* a multiple of 8"):
        ShardedTransformer(config, strategy, Workload(4, 8))
    assert ShardedTransformer(config.replace(positions="none"), strategy, Workload(4, 8))


def head_norm(dtype="float64"):
    norm = quiet(lambda: HeadNorm(TINY.replace(head_dim=16, qk_norm=True, dtype=dtype)))
    norm.q_scale_K[...], norm.k_scale_K[...] = draw((16,), 8), draw((16,), 9)
    return norm


def test_queries_and_keys_are_normed_over_the_whole_head():
    norm, q, k = head_norm(), draw((2, 5, 4, 16), 0) * 3, draw((2, 5, 2, 16), 1) * 3
    found = norm(q, k, UNSPLIT)
    for x, scale, mine in ((q, norm.q_scale_K, found[0]), (k, norm.k_scale_K, found[1])):
        rms = np.sqrt((np.asarray(x) ** 2).mean(-1, keepdims=True) + norm.epsilon)
        np.testing.assert_allclose(mine, np.asarray(x) / rms * np.asarray(scale[...]), rtol=1e-13)

    def local(split, q, k, q_scale, k_scale):
        mine = head_norm()
        mine.q_scale_K, mine.k_scale_K = (nnx.Param(x[0, 0, 0]) for x in (q_scale, k_scale))
        return mine(q, k, split)

    scales = (s[...].reshape(1, 1, 1, 16) for s in (norm.q_scale_K, norm.k_scale_K))
    for mine, whole in zip(on_slices(local)(q, k, *scales), found, strict=True):
        np.testing.assert_allclose(mine, whole, rtol=1e-13)


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
    found = attention(x, None, None, UNSPLIT, EVERY_TOKEN)[0]
    np.testing.assert_allclose(found, out, rtol=1e-11, atol=1e-13)
