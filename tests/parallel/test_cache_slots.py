"""Spans of slots against the slots themselves, one by one."""

import jax.numpy as jnp
import numpy as np
import pytest

from parallax.parallel.cache_slots import runs_of, slot_spans
from parallax.parallel.order import local_positions

LENGTHS = np.array([1, 13, 40, 59, 60], np.int32)


def of_devices(order, spread):
    """[4 x spread, slots] positions of 60 tokens over a ring of 4, each share cut again."""
    whole = [local_positions(i, 15, 4, order) for i in range(4)]
    return np.reshape(whole, (4 * spread, -1))


@pytest.mark.parametrize("spread", [1, 3])
@pytest.mark.parametrize(("order", "runs"), [("natural", 1), ("zigzag", 2)])
def test_spans_are_the_slots_that_hold_a_token(order, runs, spread):
    positions = of_devices(order, spread)
    found = runs_of(positions)
    assert found.shape == (4 * spread, runs, 3)
    slots = positions.shape[1]
    for device, new in ((0, 0), (1, 2), (4 * spread - 1, 3)):
        spans = np.asarray(
            slot_spans(found[device], jnp.asarray(LENGTHS), slots, jnp.int32(new))
        )  # fmt: skip
        held = np.arange(slots + 4)[None, None]
        held = ((held >= spans[:, :, :1]) & (held < spans[:, :, 1:])).sum(1)
        expected = np.zeros_like(held)
        expected[:, :slots] = positions[device] < LENGTHS[:, None]
        expected[:, slots : slots + new] = 1
        np.testing.assert_array_equal(held, expected)
