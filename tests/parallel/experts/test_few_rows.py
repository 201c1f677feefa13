"""The experts of few rows against the loop over tiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.parallel.experts import ExpertWeights, LocalExperts, grouped_mlp, route
from parallax.parallel.experts.chunks import ExpertShape
from parallax.parallel.experts.few_rows import experts_of_few, form_of_few, rows_of_few

T, K, E, D, F = 5, 2, 4, 8, 12
KEYS = jax.random.split(jax.random.key(0), 8)
X = jax.random.normal(KEYS[0], (T, D))
# Of eight experts, the third to the sixth are here.
ROUTING = route(jax.random.normal(KEYS[1], (T, 2 * E)), K)
IDS = ROUTING.ids_Tk - 2


def drawn(index, *shape):
    return jax.random.normal(KEYS[index], (E, *shape))


WEIGHTS = ExpertWeights(
    drawn(2, D, F), drawn(3, F, D), drawn(4, D, F), drawn(5, F), drawn(6, D), drawn(7, F)
)


def in_tiles(weights):
    rows, _ = grouped_mlp(jnp.repeat(X, K, axis=0), IDS.reshape(-1), weights, tile=2)
    return rows


@pytest.mark.parametrize("form", ["every", "chosen"])
@pytest.mark.parametrize("weights", [WEIGHTS, ExpertWeights(drawn(2, D, F), drawn(3, F, D))])
def test_tokens_that_stay(form, weights):
    assert (IDS < 0).any()
    assert (IDS >= E).any()
    exact = (in_tiles(weights).reshape(T, K, D) * ROUTING.gates_Tk[:, :, None]).sum(1)
    found = experts_of_few(X, IDS, ROUTING.gates_Tk, weights, form)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)


def test_rows_that_arrive():
    found = rows_of_few(jnp.repeat(X, K, axis=0), IDS.reshape(-1), WEIGHTS, T)
    np.testing.assert_allclose(found, in_tiles(WEIGHTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["every", "chosen"])
def test_an_expert_that_nobody_chooses_may_overflow(form):
    broken = WEIGHTS.up_eDF.at[2].set(jnp.inf)
    ids = jnp.where(IDS == 2, -1, IDS)
    weights = dataclasses.replace(WEIGHTS, up_eDF=broken)
    assert jnp.isfinite(experts_of_few(X, ids, ROUTING.gates_Tk, weights, form)).all()


def test_few_tokens_of_many_experts_read_only_those_they_choose():
    assert [form_of_few(tokens, 8, 128) for tokens in (1, 5, 6)] == ["chosen", "chosen", "every"]


def test_only_decoding_steps_of_few_rows_leave_the_tiles():
    shape = ExpertShape(512, D, K, E, 4, decodes=True)
    part = LocalExperts(chunks=4)
    assert part.form(shape, {}, E) == "every"
    assert part.chunked(shape, {}) == (1, 512)
    for change in ({"tokens": 513}, {"decodes": False}):
        other = dataclasses.replace(shape, **change)
        assert part.form(other, {}, E) == "tiles"
        assert part.chunked(other, {})[0] == 4
