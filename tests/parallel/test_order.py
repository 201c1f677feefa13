"""Orders of a ring: permutations that come back, and positions that agree with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from parallax.parallel import ORDERS, local_positions, to_order, undo_order


@given(ring=st.integers(1, 9), local=st.integers(1, 9), order=st.sampled_from(ORDERS))
def test_undo_comes_back_and_positions_agree(ring, local, order):
    tokens = jnp.arange(ring * local)[None]
    permuted = to_order(tokens, ring, order)
    np.testing.assert_array_equal(undo_order(permuted, ring, order), tokens)
    held = [np.asarray(local_positions(i, local, ring, order)) for i in range(ring)]
    np.testing.assert_array_equal(np.concatenate(held), np.asarray(permuted)[0])


@pytest.mark.parametrize("order", ORDERS)
def test_a_sharded_sequence_stays_sharded_under_explicit_axes(order):
    mesh = jax.make_mesh((4,), ("seq",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        tokens = jax.device_put(
            jnp.arange(24)[None], NamedSharding(mesh, PartitionSpec(None, "seq"))
        )
        permuted = jax.jit(lambda x: to_order(x, 4, order))(tokens)
        back = undo_order(permuted, 4, order)
    assert jax.typeof(permuted).sharding.spec == jax.typeof(back).sharding.spec
    assert jax.typeof(back).sharding.spec[1] == "seq"
    np.testing.assert_array_equal(permuted, to_order(jnp.arange(24)[None], 4, order))
    np.testing.assert_array_equal(back, np.arange(24)[None])


def test_zigzag_of_odd_pieces_by_hand():
    # 2 devices, 5 tokens each: chunks of 2, 2, 3, 3; device 0 holds the first and the last.
    np.testing.assert_array_equal(
        np.asarray(to_order(jnp.arange(10)[None], 2, "zigzag"))[0], [0, 1, 7, 8, 9, 2, 3, 4, 5, 6]
    )


def test_the_last_token_is_some_devices_last():
    for order in ORDERS:
        lasts = [int(local_positions(i, 5, 4, order)[-1]) for i in range(4)]
        assert 19 in lasts


def test_a_length_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="4 devices do not divide a sequence of 10 tokens"):
        to_order(jnp.arange(10)[None], 4, "zigzag")
