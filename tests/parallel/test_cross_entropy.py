"""Cross-entropy over a split vocabulary against optax's over a whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from parallax.parallel.cross_entropy import cross_entropy, next_token_labels


@pytest.mark.slow
def test_split_vocabulary_with_gradient():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 64)) * 10)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 64, (3, 5)), jnp.int32)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 8), ("stage", "tensor"))
    split = jax.shard_map(
        lambda x, y: cross_entropy(x, y, ("stage", "tensor")), mesh=mesh,
        in_specs=(P(None, None, ("stage", "tensor")), P()), out_specs=P(),
    )  # fmt: skip

    def expected(x):
        return optax.softmax_cross_entropy_with_integer_labels(x, labels)

    np.testing.assert_allclose(split(logits, labels), expected(logits), rtol=1e-13)
    np.testing.assert_allclose(
        jax.grad(lambda x: split(x, labels).sum())(logits),
        jax.grad(lambda x: expected(x).sum())(logits),
        atol=1e-14,
    )


def test_labels_stay_within_a_document():
    tokens = jnp.asarray([[5, 6, 7, 8, 9, 0, 0]], jnp.int32)
    segments = jnp.asarray([[1, 1, 2, 2, 2, 0, 0]], jnp.int32)
    labels, weights = next_token_labels(tokens, segments)
    np.testing.assert_array_equal(labels[0, :-1], [6, 7, 8, 9, 0, 0])
    np.testing.assert_array_equal(weights[0], [True, False, True, True, False, False, False])
    _, whole = next_token_labels(tokens, None)
    np.testing.assert_array_equal(whole[0], [True] * 6 + [False])
