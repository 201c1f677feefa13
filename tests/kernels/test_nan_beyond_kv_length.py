"""Keys and values that do not count may be NaN: an attention step, its gradients, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.kernels.interpreting import interpreted
from parallax.kernels.ring_attention import attention_step, attention_step_backward, empty_carry
from parallax.kernels.ring_attention.cases import Case, inputs

LENGTH = 70  # inside a block of keys: the kernels load and multiply the rest of it
OPTIONS = {"is_causal": False, "scale": 0.125}


@pytest.fixture
def arrays():
    return inputs(Case(64, "bfloat16", 40, 200), seed=1)[:3]


def filled(x, value):
    return jnp.asarray(np.where(np.arange(x.shape[1])[:, None, None] < LENGTH, x, value), x.dtype)


@pytest.mark.parametrize("implementation", ["xla", "mosaic"])
def test_a_step_and_its_gradients_do_not_see_them(arrays, implementation):
    q, k, v = arrays
    sums = jnp.ones((1, 1, 40), jnp.float32)
    options = {**OPTIONS, "kv_length": jnp.int32(LENGTH), "implementation": implementation}

    @jax.jit
    def run(k, v):
        carry = attention_step(q, k, v, empty_carry(q), **options)
        return carry, attention_step_backward(q, k, v, q, sums, sums, **options)

    with interpreted():
        found, expected = (run(filled(k, value), filled(v, value)) for value in (jnp.nan, 0))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_nor_does_the_gradient_that_jax_derives(arrays):
    def loss(q, k, v):
        carry = attention_step(
            q, k, v, empty_carry(q), kv_length=jnp.int32(LENGTH), implementation="xla", **OPTIONS
        )
        return carry.o.sum()

    q, k, v = arrays
    for gradient in jax.grad(loss, (0, 1, 2))(q, filled(k, jnp.nan), filled(v, jnp.nan)):
        assert np.isfinite(gradient.astype(jnp.float32)).all()
