"""Closed forms of the exchanges: equal to the traced program, near the least, and by hand."""

import jax
import numpy as np
import pytest

from parallax.bounds import totals
from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.parallel.experts import ExchangeExperts, ExpertShape, LocalExperts, fixed_expert_ids
from tests.parallel.experts.textbook import draw, expert_weights, sharded

pytestmark = pytest.mark.slow

NODES = ("node", "expert")
TOKENS, WIDTH, EXPERTS = 24, 16, 16  # tokens a device

CASES = {
    "one expert a device": (ExchangeExperts(), {"expert": 16}),
    "eight experts a device, one chunk": (ExchangeExperts(chunks=1), {"expert": 2}),
    "capacity": (ExchangeExperts(capacity_factor=1.25, chunks=2), {"expert": 4}),
    "chunks that do not divide": (ExchangeExperts(chunks=5), {"expert": 4}),
    "ragged, emulated": (ExchangeExperts(exchange="ragged"), {"expert": 4}),
    "two axes, flat": (ExchangeExperts(NODES), {"node": 2, "expert": 4}),
    "node-aware": (ExchangeExperts(NODES, node_aware=True), {"node": 2, "expert": 4}),
    "node-aware, capacity, two chunks": (
        ExchangeExperts(NODES, node_aware=True, capacity_factor=1.0, chunks=2),
        {"node": 4, "expert": 2},
    ),
}


def traced(part, axes, top_k, gradient):
    """The jaxpr of one forward call, or of a loss and its gradients."""
    run = sharded(part, axes, top_k=top_k, experts=EXPERTS, gated=False)
    devices = int(np.prod(list(axes.values())))
    args = (
        draw(devices * TOKENS, WIDTH), draw(devices * TOKENS, EXPERTS),
        expert_weights(EXPERTS, WIDTH, 8, False),
    )  # fmt: skip

    def forward(x, logits, weights):
        return run(x, logits, weights, None)[0]

    def loss(*args):
        return forward(*args).sum()

    function = jax.value_and_grad(loss, argnums=(0, 1, 2)) if gradient else forward
    return jaxpr_ledger(jax.make_jaxpr(function)(*args), axes)


def by_axes(transfers):
    found: dict = {}
    for t in transfers:
        found[t.kind, t.axes] = found.get((t.kind, t.axes), 0.0) + t.wire_bytes
    return found


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "value_and_grad"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_traced_program(name, gradient):
    part, axes = CASES[name]
    shape = ExpertShape(TOKENS, WIDTH, 2, EXPERTS, item_bytes=8, gate_bytes=8)
    expected = part.transfers(shape, axes, 1, platform="cpu")
    if gradient:
        expected += part.backward_transfers(shape, axes, 1, platform="cpu")
    ledger = traced(part, axes, 2, gradient)
    found = {
        key: total for key, total in ledger.by_kind_and_axes().items() if key[0] == "all-to-all"
    }
    assert found == pytest.approx(by_axes(expected), rel=1e-12)
    assert sum(c.count for c in ledger if c.kind == "all-to-all") == sum(t.count for t in expected)
    # The textbook's sharded function adds up what was dropped, and nothing else is summed.
    rest = [c for c in ledger if c.kind != "all-to-all"]
    assert all(c.payload_bytes <= 8 for c in rest), rest


def test_calls_multiply_and_what_stays_sends_nothing():
    part, axes = CASES["node-aware"]
    shape = ExpertShape(TOKENS, WIDTH, 2, EXPERTS, item_bytes=2)
    once, thrice = (part.transfers(shape, axes, calls) for calls in (1, 3))
    for a, b in zip(once, thrice, strict=True):
        assert (3 * a.wire_bytes, 3 * a.count, 3 * a.minimum_bytes) == pytest.approx(
            (b.wire_bytes, b.count, b.minimum_bytes)
        )
    assert LocalExperts().transfers(shape, axes, 3) == ()
    assert LocalExperts().backward_transfers(shape, axes, 3) == ()


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_least_is_two_rows_for_each_choice_that_leaves(top_k):
    """2 k h dtype (P-1)/P a token; a capacity factor of 1 comes within 5 % of it."""
    shape = ExpertShape(10_000, 8192, top_k, 16, item_bytes=2)
    least = 10_000 * 2 * top_k * 8192 * 2 * 15 / 16
    for part in (ExchangeExperts(capacity_factor=1.0), ExchangeExperts(exchange="ragged")):
        sent, minimum = totals(part.transfers(shape, {"expert": 16}, 1))
        assert minimum == pytest.approx(least)
        assert minimum <= sent <= 1.05 * minimum
    dropless, minimum = totals(ExchangeExperts().transfers(shape, {"expert": 16}, 1))
    assert dropless == pytest.approx(16 / top_k * minimum, rel=1e-3)


def test_uniform_choices_need_what_the_closed_form_says():
    """Derived from fixed_ids choices, on average over devices."""
    tokens, experts, axes = 4096, 16, {"node": 2, "expert": 8}
    ids = fixed_expert_ids("uniform", 16 * tokens, experts, 2)
    shape = ExpertShape(tokens, 64, 2, experts, item_bytes=2)
    for part in (
        ExchangeExperts(NODES, exchange="ragged"),
        ExchangeExperts(NODES, exchange="ragged", node_aware=True),
    ):
        derived = part.derived_bytes(shape, axes, ids)
        expected: dict = {}
        for t in part.transfers(shape, axes, 1):
            expected[t.axes] = expected.get(t.axes, 0.0) + t.minimum_bytes
        assert set(derived) == set(expected)
        for over, bytes_P in derived.items():
            assert bytes_P.shape == (16,)
            assert bytes_P.mean() == pytest.approx(expected[over], rel=0.01)


def test_derived_bytes_by_a_loop():
    """A token enters another node once, is relayed to its experts, and comes home as one row."""
    nodes, ranks, tokens, experts = 2, 4, 16, 16
    devices, here = nodes * ranks, experts // (nodes * ranks)
    ids = fixed_expert_ids("lognormal:1", devices * tokens, experts, 3, seed=2)
    flat, between, within = (np.zeros(devices, int) for _ in range(3))
    for t, row in enumerate(ids):
        home = t // tokens
        for node in {e // (experts // nodes) for e in row}:
            relay = node * ranks + home % ranks
            between[[home, relay]] += home != relay  # there, and home
            for e in row:
                if e // (experts // nodes) == node:
                    within[[relay, e // here]] += relay != e // here
        for e in row:
            flat[[home, e // here]] += home != e // here
    shape = ExpertShape(tokens, 4, 3, experts, item_bytes=2)
    axes = {"node": nodes, "expert": ranks}
    aware = ExchangeExperts(NODES, exchange="ragged", node_aware=True)
    found = aware.derived_bytes(shape, axes, ids)
    np.testing.assert_array_equal(found["node",], between * 8)
    np.testing.assert_array_equal(found["expert",], within * 8)
    np.testing.assert_array_equal(
        ExchangeExperts(NODES).derived_bytes(shape, axes, ids)[NODES], flat * 8
    )
    with pytest.raises(ValueError, match="expected no capacity"):
        ExchangeExperts(capacity_factor=1.0).derived_bytes(shape, {"expert": 8}, ids)
    with pytest.raises(ValueError, match="expected choices of 8 x 16 tokens, got 10"):
        ExchangeExperts().derived_bytes(shape, {"expert": 8}, ids[:10])
