"""Each attention part against the textbook, and what it sends against its closed form."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parallax.kernels.ring_attention import reference
from parallax.parallel import head_exchange, ring, ulysses
from parallax.parallel.attention_parts import Local, Ring, Ulysses
from parallax.parallel.scoring import CAUSAL
from tests.parallel.cases import (
    CASES,
    RING2,
    SLICES,
    Case,
    counted,
    held,
    inputs,
    mapped,
    moved,
    program,
    ring_of_2,
    slices,
    worst,
)
from tests.selection import often

pytestmark = pytest.mark.slow


@often(
    CASES, "local", "double", "window ring", "window double zigzag", "window exchange",
    "window scores zigzag", "window gather", "ulysses double ring", "exchange ring", "scores ring",
    "gather ring", "auto", "latent ulysses ring", "ulysses of slices",
)  # fmt: skip
def test_is_the_textbooks_attention(name):
    assert worst(CASES[name]) < 1e-13


@pytest.mark.parametrize("name", CASES)
def test_sends_what_its_closed_form_says(name):
    # The gradients of sinks are summed over devices as those of weights are, by the caller.
    case = dataclasses.replace(CASES[name], has_sinks=False)
    forward = case.part.transfers(case.shape, case.mesh, 1)
    backward = case.part.backward_transfers(case.shape, case.mesh, 1)

    def only_forward(case, ids):
        order = held(case)
        ids = None if ids is None else ids[:, order]
        return lambda q, k, v, _: mapped(case)(q, k, v, ids)

    assert counted(case, only_forward) == pytest.approx(moved(forward), rel=1e-12)
    assert counted(case, program) == pytest.approx(moved(forward + backward), rel=1e-12)
    assert bool(forward) == (case.part != Local())


@pytest.mark.parametrize("name", CASES)
def test_positions_are_the_same_known_and_computed_and_each_once(name):
    case = CASES[name]
    found = held(case)
    np.testing.assert_array_equal(np.sort(found), np.arange(case.length))
    last = case.length // case.tokens - 1
    computed = jax.jit(lambda index: case.part.positions(index, case.tokens, case.mesh))(last)
    np.testing.assert_array_equal(computed, found[-case.tokens :])


def lose_a_node(patch):
    exact = ring._send

    def send(axis, pairs, tree):
        return tree if axis == "node" else exact(axis, pairs, tree)

    patch.setattr(ring, "_send", send)
    return "double full"


def lose_the_way_home(patch):
    """The gradients of one ring's keys stop one hop short of home."""
    exact = ring._around

    def around(axis, kv, hop, state, home, unroll):
        state, shares = exact(axis, kv, hop, state, home, unroll)
        size = lax.axis_size(axis)
        back = [(i, (i - 1) % size) for i in range(size)]
        return state, shares if axis == "node" else ring._send(axis, back, shares)

    patch.setattr(ring, "_around", around)
    return "double full"


def forget_to_sum_scores(patch):
    patch.setattr(reference, "_whole", lambda partial, axis: partial)
    return "scores"


def read_a_neighbours_keys(patch):
    exact = head_exchange.kv_heads_read
    patch.setattr(head_exchange, "kv_heads_read", lambda *sizes: np.roll(exact(*sizes), 1, axis=0))
    return "exchange grouped"


def mistake_the_shard(patch):
    exact = ring.QueryShards.index
    patch.setattr(ring.QueryShards, "index", lambda self: (exact(self) + 1) % self.size)
    return "exchange shards"


def lose_a_slice(patch):
    exact = head_exchange.to_heads

    def to_heads(x, axis, joined):
        return exact(x * (lax.axis_index(axis) != 3).astype(x.dtype), axis, joined)

    patch.setattr(head_exchange, "to_heads", to_heads)
    return "exchange"


def spread_as_if_heads_were_many(patch):
    patch.setattr(ulysses, "spread", lambda k, table: jnp.tile(k, (1, 1, table.size // 2, 1)))
    return "ulysses"


MUTATIONS = [
    lose_a_node, lose_the_way_home, forget_to_sum_scores, read_a_neighbours_keys,
    mistake_the_shard, lose_a_slice, spread_as_if_heads_were_many,
]  # fmt: skip


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda m: m.__name__)
def test_mutations_are_seen(mutate, monkeypatch):
    assert worst(CASES[mutate(monkeypatch)]) > 1e-2


BAD = {
    "ring of shards": (Case(slices("exchange", **ring_of_2), RING2, heads=2),
                       r"1 part|2 part.* of 2 heads for 4 devices.*inner=Ring"),
    "tokens": (Case(slices("exchange"), SLICES, heads=1, kv_heads=1, tokens=6),
               "4 query shards, which do not divide 6 tokens"),
    "heads": (Case(Ulysses("seq"), {"seq": 4}, heads=6),
              r"'seq' \(size 4\) does not divide 6 query heads"),
    "partial slices": (Case(slices("gather"), SLICES), "already split over 'tensor'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_split_is_refused(name):
    case, message = BAD[name]
    q, k, v, _, ids = inputs(case)
    if name == "partial slices":
        with pytest.raises(ValueError, match=message):
            case.part.attend(q, k, v, scoring=CAUSAL, segment_ids=None, partial_over="tensor")
        return
    with pytest.raises(ValueError, match=message):
        jax.make_jaxpr(mapped(case))(q, k, v, ids)


def test_bad_parts_are_named():
    with pytest.raises(ValueError, match="auto, exchange, scores, gather, local; got 'sum'"):
        slices("sum")
    with pytest.raises(ValueError, match="splits head_dim too"):
        slices("gather", inner=slices("gather"))
    with pytest.raises(ValueError, match="major first; got"):
        Ring(("seq", "seq"))
    from_a_file: Any = ["node", "seq"]
    assert Ring(from_a_file) == Ring(("node", "seq"))
