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
from parallax.models.packed_weight import factor, multiplied
from parallax.parallel import products
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


def rows(count=3, dtype="float16"):
    drawn = np.random.default_rng(0).standard_normal((count, 1, CONFIG.d_model))
    return jnp.asarray(drawn, dtype)


def test_a_layer_of_a_decoding_step_is_the_same_by_the_kernel(monkeypatch):
    block, x, calls = layer(("int8", "int8+2:4")), rows(), []
    kernel = products.packed_matmul
    monkeypatch.setattr(
        products, "packed_matmul", lambda *a: (calls.append(a[1].shape), kernel(*a))[1]
    )
    expected = products_of(block, x)
    assert not calls
    with dispatch.enabling("mosaic"), dispatch.refusals() as told, interpreted():
        found = jax.jit(lambda x: products_of(block, x))(x)
    assert calls == [(128, 128)] * 2 + [(128, 256)] * 2 + [(256, 128)]
    assert not told
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype == jnp.float16
        # XLA rounds scaled weights to float16.
        largest = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, atol=2e-3 * largest, rtol=0)


@pytest.mark.parametrize(
    ("compression", "count", "reason"),
    [
        (("int8", "int8+4:8"), 3, "it has 2:4 sparsity, not 4:8"),
        (("int8", "int4/64"), 3, "64 inputs share a scale"),
        (("int8", "int8"), 65, "64 tokens at most, and there are 65"),
        (("int8", "w8a8"), 3, "it has no products of integers"),
    ],
)
def test_what_the_kernel_cannot_do_is_recorded_and_left_to_xla(compression, count, reason):
    block, x = layer(compression), rows(count)
    expected = block.mlp(x, STEP)
    with dispatch.enabling("mosaic"), dispatch.refusals() as told, interpreted():
        np.testing.assert_array_equal(block.mlp(x, STEP), expected)
    assert len(told) == 1
    assert reason in told.pop()


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
    np.testing.assert_array_equal(stored.dense(), block.attention.q_DHK[...])
    with dispatch.enabling("mosaic"), dispatch.refusals() as told, interpreted():
        block.mlp(rows(), STEP)
    assert not told
