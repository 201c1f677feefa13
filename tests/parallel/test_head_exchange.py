"""Who gets which heads, by enumeration."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.parallel.head_exchange import SliceExchange, kv_heads_read


@given(kv_heads=st.integers(1, 4), group=st.integers(1, 6), data=st.data())
def test_every_query_head_finds_its_key_head(kv_heads, group, data):
    heads = kv_heads * group
    parts = data.draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    table = kv_heads_read(heads, kv_heads, parts)
    local = heads // parts
    for head in range(heads):
        # Inside a part, attention gives query head i the key head i // (local / G').
        part, i = divmod(head, local)
        assert table[part][i * table.shape[1] // local] == head // group
    if local % group == 0:  # whole groups: nothing is sent twice
        np.testing.assert_array_equal(table.reshape(-1), np.arange(kv_heads))


@given(heads=st.integers(1, 8), devices=st.integers(1, 8))
def test_parts_and_shards_use_all_devices(heads, devices):
    exchange = SliceExchange.of(heads, heads, devices)
    assert exchange.parts * exchange.shards == devices == len(exchange.table)
    assert heads % exchange.parts == 0
    assert math.gcd(exchange.shards, heads // exchange.parts) == 1


@pytest.mark.parametrize(("heads", "parts", "shards"), [(4, 4, 1), (2, 2, 2), (1, 1, 4), (3, 1, 4)])
def test_shards_where_heads_run_out(heads, parts, shards):
    exchange = SliceExchange.of(heads, 1, 4)
    assert (exchange.parts, exchange.shards) == (parts, shards)
    np.testing.assert_array_equal(exchange.table, np.zeros((4, 1)))
