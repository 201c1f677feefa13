"""Positions of routed rows: none lost, none twice, each expert's rows contiguous."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.parallel.experts.dispatch import (
    capacity,
    combine,
    experts_of_rows,
    offsets,
    pack,
    unpack,
)
from tests.parallel.experts.textbook import draw


@st.composite
def choices(draw_from):
    """(ids [T, k] with distinct experts a token and some -1, experts, devices, factor)."""
    # Few shapes, each compiled once, and many choices.
    devices, experts, top_k, tokens = draw_from(
        st.sampled_from([(1, 3, 2, 6), (4, 4, 1, 5), (4, 4, 3, 4), (2, 6, 2, 7), (1, 1, 1, 1)])
    )
    row = st.permutations(range(experts)).map(lambda order: list(order[:top_k]))
    ids = np.array(draw_from(st.lists(row, min_size=tokens, max_size=tokens)), np.int32)
    absent = draw_from(st.lists(st.booleans(), min_size=ids.size, max_size=ids.size))
    ids[np.array(absent).reshape(ids.shape)] = -1
    return ids, experts, devices, draw_from(st.sampled_from([None, 0.5, 1.2]))


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def there_and_back(ids, x, gates, experts, devices, places):
    to = offsets(ids, experts, devices, places)
    buffer = pack(x, to)
    return to, buffer, combine(buffer, gates, to), experts_of_rows(to.rows_Pe, places.rows)


@pytest.mark.slow
@settings(max_examples=60)
@given(choices())
def test_identity_experts_give_back_the_sum_of_gates(case):
    ids, experts, devices, factor = case
    tokens, top_k = ids.shape
    places = capacity(tokens, top_k, experts, devices, factor)
    x, gates = draw(tokens, 3), jnp.abs(draw(tokens, top_k, seed=1))
    to, buffer, y, local = there_and_back(ids, x, gates, experts, devices, places)
    assert buffer.shape == (devices, places.rows, 3)

    # By a loop: a choice has a place unless its expert has no room left.
    room = dict.fromkeys(range(experts), places.per_expert or tokens)
    kept, rows = np.zeros(ids.shape, bool), np.zeros((devices, experts // devices), int)
    for t, j in np.ndindex(ids.shape):
        if ids[t, j] >= 0 and room[ids[t, j]]:
            kept[t, j], room[ids[t, j]] = True, room[ids[t, j]] - 1
            rows[divmod(ids[t, j], experts // devices)] += 1
    np.testing.assert_array_equal(to.rows_Pe, rows)
    assert int(to.dropped) == (ids >= 0).sum() - kept.sum()
    expected = (gates * jnp.asarray(kept, float)).sum(axis=1, keepdims=True) * x
    np.testing.assert_allclose(y, expected, rtol=1e-14, atol=0)

    # Each row is its token's, on the device and under the number of its expert.
    local, choice, buffer = (np.asarray(a) for a in (local, to.choice_PC, buffer))
    assert ((local >= 0) == (choice >= 0)).all()
    x_rows = np.asarray(x)
    for p, c in zip(*np.nonzero(choice >= 0), strict=True):
        t, j = divmod(int(choice[p, c]), top_k)
        assert ids[t, j] == p * (experts // devices) + local[p, c]
        assert (buffer[p, c] == x_rows[t]).all()
    assert (np.diff(np.where(local < 0, experts, local), axis=1) >= 0).all()
    assert not buffer[choice < 0].any()


def test_pack_and_unpack_are_transposes():
    ids = jnp.asarray([[0, 2], [2, 1], [3, -1], [2, 0]], jnp.int32)
    to = offsets(ids, 4, 2, capacity(4, 2, 4, 2, 0.75))
    assert to.dropped > 0
    x, y, rows = draw(4, 3), draw(2, to.choice_PC.shape[1], 3, seed=1), draw(4, 2, 3, seed=2)
    packed, pack_vjp = jax.vjp(lambda x: pack(x, to), x)
    unpacked, unpack_vjp = jax.vjp(lambda y: unpack(y, to), y)
    assert (packed * y).sum() == pytest.approx(float((x * unpacked.sum(axis=1)).sum()))
    np.testing.assert_allclose(pack_vjp(y)[0], unpacked.sum(axis=1), rtol=1e-14)
    back = unpack_vjp(rows)[0]
    assert (back * y).sum() == pytest.approx(float((rows * unpacked).sum()))


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "devices", "factor", "expected"),
    [
        (10, 1, 4, 4, None, (10, None)),
        (10, 2, 8, 4, None, (20, None)),
        (10, 2, 4, 4, None, (10, None)),  # two choices of a token never go to one expert
        (10, 2, 8, 4, 1.0, (6, 3)),
        (10, 2, 8, 4, 100.0, (20, 10)),
    ],
)
def test_places_by_hand(tokens, top_k, experts, devices, factor, expected):
    assert capacity(tokens, top_k, experts, devices, factor) == expected
