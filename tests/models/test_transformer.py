"""The unsplit model: documents do not see each other, the past not the future."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parallax.models.config import ModelConfig
from parallax.models.rope import token_positions
from parallax.models.transformer import Transformer

TINY = ModelConfig(
    name="tiny", num_layers=2, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=64,
    vocab_size=61, dtype="float64", max_seq_len=24,
)  # fmt: skip
VARIANTS = [
    TINY,
    TINY.replace(mlp="gated", norm="layernorm", positions="learned", num_kv_heads=4),
    TINY.replace(positions="none", causal=False, head_dim=16, num_kv_heads=1, qk_norm=True),
]


def make(config):
    with nnx.use_eager_sharding(False):
        return Transformer(config, rngs=nnx.Rngs(params=0))


def run(model, *inputs):
    graph, state = nnx.split(model)
    return jax.jit(lambda s, *x: nnx.merge(graph, s)(*x))(state, *inputs)


def tokens(batch, length, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 61, (batch, length)), jnp.int32)


@pytest.mark.parametrize("config", VARIANTS, ids=["rope", "learned", "none"])
def test_packed_documents_are_computed_as_if_alone(config):
    model = make(config)
    first, second = tokens(2, 10), tokens(2, 6, seed=1)
    packed = jnp.concatenate([first, second], axis=1)
    ids = jnp.concatenate([jnp.full((2, 10), 1), jnp.full((2, 6), 2)], axis=1).astype(jnp.int32)
    out = run(model, packed, ids)
    np.testing.assert_allclose(out[:, :10], run(model, first), atol=1e-12)
    np.testing.assert_allclose(out[:, 10:], run(model, second), atol=1e-12)


@pytest.mark.parametrize("config", VARIANTS, ids=["rope", "learned", "none"])
def test_parameters_are_as_many_as_the_config_says_and_all_named(config):
    state = nnx.split(make(config))[1]
    assert sum(x.size for x in jax.tree.leaves(state)) == config.num_params
    for path, variable in nnx.to_flat_state(state):
        names = variable.out_sharding
        assert len(names) == variable.ndim, path
        assert (names[0] == "layers") == (path[0] == "layers"), path


def test_causal_logits_ignore_what_follows():
    model = make(TINY)
    short, longer = tokens(1, 8), tokens(1, 12)
    longer = longer.at[:, :8].set(short)
    np.testing.assert_allclose(run(model, longer)[:, :8], run(model, short), atol=1e-13)
    full = make(TINY.replace(causal=False))
    assert np.abs(run(full, longer)[:, :8] - run(full, short)).max() > 1e-3


def test_logits_are_of_the_size_that_tests_assume():
    rms = float(jnp.sqrt(jnp.mean(jnp.square(run(make(TINY), tokens(4, 24))))))
    assert 0.5 < rms < 2


def test_positions_restart_in_every_document():
    ids = jnp.asarray([[1, 1, 1, 2, 2, 0]], jnp.int32)
    np.testing.assert_array_equal(token_positions(6, ids), [[0, 1, 2, 0, 1, 0]])
    np.testing.assert_array_equal(token_positions(3, None), [[0, 1, 2]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype):
    out = run(make(TINY.replace(dtype=dtype)), tokens(1, 8))
    assert out.dtype == dtype
    assert bool(jnp.isfinite(out).all())


def test_small_keeps_the_shape():
    config = TINY.replace(head_dim=64, d_model=512, d_ff=2048)
    small = config.small()
    assert (small.num_layers, small.num_heads, small.num_kv_heads) == (2, 4, 2)
    assert small.d_ff / small.d_model == 4
    assert small.vocab_size == 256
    assert TINY.replace(head_dim=4).small().head_dim == 4
    assert TINY.replace(head_dim=24, d_model=100).small().d_model == 36  # divisible by 4, as 100 is


BAD = {
    "d_model": (dict(d_model=0), "d_model must be an integer of at least 1, got 0"),
    "groups": (dict(num_kv_heads=3), "num_kv_heads=3 does not divide num_heads=4"),
    "pairs": (dict(head_dim=7), "head_dim=7 is odd"),
    "mlp": (dict(mlp="moe"), "mlp must be one of gelu, gated; got 'moe'"),
    "dtype": (dict(dtype="int8"), "dtype must be one of float16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configs_are_named(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        TINY.replace(**changes)
