"""The layer of a decoding step by the kernel of packed weights: as by XLA, and never in silence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parallax.kernels import dispatch
from parallax.kernels.interpreting import interpreted
from parallax.models.block import Block
from parallax.models.moe import Moe
from parallax.models.packed_weight import factor, multiplied
from parallax.parallel import products
from parallax.parallel.experts import LocalExperts
from parallax.parallel.split import UNSPLIT
from tests.strategies.cases import SMALL

STEP = UNSPLIT.replace(decodes=True)
CONFIG = SMALL.replace(d_model=128, num_heads=2, num_kv_heads=2, head_dim=64, d_ff=256,
                       dtype="float16", mlp="gated", bias=False)  # fmt: skip


def layer(compression):
    with nnx.use_eager_sharding(False):
        return Block(CONFIG.replace(compression=compression), rngs=nnx.Rngs(params=0))


def products_of(block, x_BLD, split=STEP) -> tuple[Any, ...]:
    """The queries, attention's output matrix, and the MLP of a layer."""
    q_BLHK = multiplied(x_BLD, block.attention.q_DHK, "bld,dhk->blhk", split)
    out = split.contract(q_BLHK, factor(block.attention.output, split), "blhk,hkd->bld", over=())
    return q_BLHK, out, block.mlp(x_BLD, split)


def moe(experts):
    config = CONFIG.replace(compression=("int8", "int4"), num_experts=experts, experts_per_token=1)
    with nnx.use_eager_sharding(False):
        return Moe(config, rngs=nnx.Rngs(params=0))


def rows(count=3, dtype="float16"):
    drawn = np.random.default_rng(0).standard_normal((count, 1, CONFIG.d_model))
    return jnp.asarray(drawn, dtype)


def test_a_layer_of_a_decoding_step_is_the_same_by_the_kernel(monkeypatch):
    """Integer products, which attention has here, to the last bit."""
    block, x, calls = layer(("w8a8", "int8+2:4")), rows(), []
    kernel = products.packed_matmul
    monkeypatch.setattr(
        products, "packed_matmul", lambda *a: (calls.append(a[1].shape), kernel(*a))[1]
    )
    expected = jax.jit(lambda x: products_of(block, x))(x)
    assert not calls
    with dispatch.enabling("mosaic"), dispatch.refusals() as told, interpreted():
        found = jax.jit(lambda x: products_of(block, x))(x)
    assert calls == [(128, 128)] * 2 + [(128, 256)] * 2 + [(256, 128)]
    assert not told
    # XLA rounds scaled weights to float16.
    for ours, theirs, error in zip(found, expected, (0, 0, 2e-3), strict=True):
        assert ours.dtype == theirs.dtype == jnp.float16
        largest = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, atol=error * largest, rtol=0)


@pytest.mark.parametrize(("experts", "count", "ran"), [(2, 3, 2), (3, 1, 1)])
def test_experts_read_their_packed_weights(experts, count, ran, monkeypatch):
    """Those of all experts, and of the one that a single token chooses of more."""
    part, x, calls = moe(experts), rows(count), []
    kernel = products.packed_matmul
    monkeypatch.setattr(
        products, "packed_matmul", lambda *a: (calls.append(a[1].values.shape), kernel(*a))[1]
    )
    expected, _ = jax.jit(lambda x: part(x, STEP))(x)
    assert not calls
    with dispatch.enabling("mosaic"), dispatch.refusals() as told, interpreted():
        found, _ = jax.jit(lambda x: part(x, STEP))(x)
    assert calls == [(ran, 64, 256)] * 2 + [(ran, 128, 128)]
    assert not told
    np.testing.assert_allclose(found, expected, atol=2e-3 * float(jnp.abs(expected).max()), rtol=0)


@pytest.mark.parametrize(
    ("compression", "count", "reason"),
    [
        (("int8", "int8+4:8"), 3, "it has 2:4 sparsity, not 4:8"),
        (("int8", "int4/64"), 3, "64 inputs share a scale"),
        (("int8", "int8"), 65, "64 tokens at most, and there are 65"),
    ],
)
def test_what_the_kernel_cannot_do_is_recorded_and_left_to_xla(compression, count, reason):
    block, x = layer(compression), rows(count)
    expected = block.mlp(x, STEP)
    with dispatch.enabling("mosaic"), dispatch.refusals() as told, interpreted():
        np.testing.assert_array_equal(block.mlp(x, STEP), expected)
    assert len(told) == 1
    assert reason in told.pop()


def test_experts_in_tiles_are_recorded_and_left_to_xla():
    part, split = moe(2), STEP.replace(experts=LocalExperts(tile=2))
    with dispatch.enabling("mosaic"), dispatch.refusals() as told, interpreted():
        jax.eval_shape(lambda x: part(x, split), rows())
    assert "these run in tiles" in told.pop()


def test_a_product_within_heads_is_recorded_and_left_to_xla():
    weight = layer(("int8", "int8")).attention.q_DHK
    x = rows().reshape(3, 1, 2, 64)
    x = jnp.concatenate([x, x], axis=-1)
    with dispatch.enabling("mosaic"), dispatch.refusals() as told, interpreted():
        found = multiplied(x, weight, "blhd,dhk->blhk", STEP)
    np.testing.assert_array_equal(found, jnp.einsum("blhd,dhk->blhk", x, weight[...]))
    assert "it multiplies rows by a matrix" in told.pop()


def test_only_decoding_steps_have_packed_factors():
    """A prefill, with more tokens, takes the dense weight; so do formats without integers."""
    block = layer(("int8", "float16"))
    assert isinstance(factor(block.attention.q_DHK, UNSPLIT), jax.Array)
    stored = factor(block.attention.q_DHK, STEP)
    assert isinstance(stored, products.StoredWeight)
    np.testing.assert_array_equal(stored.unpacked(), block.attention.q_DHK[...])
    with dispatch.enabling("mosaic"), dispatch.refusals() as told, interpreted():
        block.mlp(rows(), STEP)
    assert not told
