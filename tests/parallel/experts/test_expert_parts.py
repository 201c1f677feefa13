"""Every way of splitting experts gives the textbook's mixture, forward and backward."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.parallel.experts import (
    EXPERT_PARTS,
    ExchangeExperts,
    ExpertWeights,
    LocalExperts,
    fixed_expert_ids,
    route,
)
from tests.parallel.experts.textbook import (
    distance,
    draw,
    expert_weights,
    mesh_of,
    mixture,
    sharded,
    with_gradients,
)
from tests.selection import often

pytestmark = pytest.mark.slow

NODES = ("node", "expert")
LIMIT = 1e-12


def exchange(**fields):
    return ExchangeExperts(**{"tile": 4, **fields})


# name: part, mesh, choices, experts, gated, further arguments of `sharded`, router's bias
CASES = {
    "top-1, one expert a device": (exchange(), {"expert": 4}, 1, 4, False, {}, None),
    "top-2, two experts a device": (exchange(chunks=3), {"expert": 4}, 2, 8, True, {}, None),
    "sixteen devices": (exchange(), {"expert": 16}, 2, 16, False, {}, None),
    "ragged": (exchange(exchange="ragged"), {"expert": 4}, 2, 8, False, {}, None),
    "one chunk": (exchange(chunks=1), {"expert": 2}, 2, 4, False, {}, None),
    "chunks that do not divide": (exchange(chunks=5), {"expert": 4}, 1, 4, True, {}, None),
    "a chunk a token": (exchange(chunks=99), {"expert": 8}, 2, 8, False, {}, None),
    "one expert gets everything": (exchange(), {"expert": 4}, 1, 8, False, {}, (3,)),
    "two experts get everything": (
        exchange(axis=NODES, node_aware=True),
        {"node": 2, "expert": 4}, 2, 8, True, {}, (6, 7),
    ),
    "F over tensor, tokens also over data": (
        exchange(), {"data": 2, "expert": 4, "tensor": 2}, 2, 8, True,
        {"tokens": ("data", "expert"), "mlp": "tensor"}, None,
    ),
    "flat over two axes": (exchange(axis=NODES), {"node": 2, "expert": 4}, 2, 8, False, {}, None),
    "node-aware": (
        exchange(axis=NODES, node_aware=True, chunks=2), {"node": 2, "expert": 4}, 2, 16, False,
        {}, None,
    ),
    "node-aware, ragged, four nodes, F over tensor": (
        exchange(axis=NODES, node_aware=True, exchange="ragged"),
        {"node": 4, "expert": 2, "tensor": 2}, 2, 8, True, {"mlp": "tensor"}, None,
    ),
    "local, F over tensor": (
        LocalExperts(tile=4), {"data": 2, "tensor": 4}, 2, 4, False,
        {"tokens": ("data",), "mlp": "tensor"}, None,
    ),
    "local, whole experts over tensor": (
        LocalExperts(tile=4, chunks=2), {"tensor": 4}, 2, 8, True,
        {"tokens": (), "over": ("tensor",)}, (0, 5),
    ),
}  # fmt: skip
TOKENS, WIDTH, HIDDEN = 48, 4, 8
# Experts with biases and a clamped gate.
BIASED = [
    f"{name}, biases" for name in (
        "local, F over tensor", "local, whole experts over tensor",
        "F over tensor, tokens also over data", "node-aware, ragged, four nodes, F over tensor",
    )
]  # fmt: skip


def inputs(experts, gated, bias, **how):
    logits = draw(TOKENS, experts, seed=1)
    for favourite in bias or ():
        logits = logits.at[:, favourite].add(8.0)
    return draw(TOKENS, WIDTH), logits, expert_weights(experts, WIDTH, HIDDEN, gated, **how)


@often([*CASES, *BIASED], "ragged", "chunks that do not divide", "node-aware", *BIASED[1:])
def test_equals_the_textbook(name):
    name, added = name.removesuffix(", biases"), name.endswith(", biases")
    part, axes, top_k, experts, gated, more, bias = CASES[name]
    how = {"kind": "clamped", "biases": True} if added else {}
    run = sharded(part, axes, top_k=top_k, experts=experts, gated=gated, **more, **how)
    args, d_out = inputs(experts, gated, bias, **how), draw(TOKENS, WIDTH, seed=2)

    def found(x, logits, weights):
        return run(x, logits, weights, None)[0]

    def expected(x, logits, weights):
        return mixture(x, logits, weights, top_k)

    errors = distance(with_gradients(found, d_out)(*args), with_gradients(expected, d_out)(*args))
    assert max(errors) <= LIMIT, errors


@pytest.mark.parametrize(
    "name",
    ["one expert gets everything", "node-aware, ragged, four nodes, F over tensor",
     "local, whole experts over tensor"],
)  # fmt: skip
def test_a_step_of_few_rows_equals_the_textbook(name):
    part, axes, top_k, experts, gated, more, bias = CASES[name]
    part, how = dataclasses.replace(part, tile=TOKENS), {"kind": "clamped", "biases": True}
    run = sharded(
        part, axes, top_k=top_k, experts=experts, gated=gated, decodes=True, **more, **how
    )
    args = inputs(experts, gated, bias, **how)
    found, dropped = jax.jit(run)(*args, None)
    assert max(distance(found, mixture(*args, top_k))) <= LIMIT
    assert dropped == 0


def test_one_device_and_no_mesh_at_all():
    args, d_out = inputs(4, True, None), draw(TOKENS, WIDTH, seed=2)

    def plain(x, logits, weights):
        return LocalExperts(tile=8).run(
            x, route(logits, 2), weights, num_experts=4, expert_axes=(), platform="cpu"
        )[0]

    def expected(x, logits, weights):
        return mixture(x, logits, weights, 2)

    found = with_gradients(plain, d_out)(*args)
    assert max(distance(found, with_gradients(expected, d_out)(*args))) <= LIMIT


def test_in_microbatches_that_are_recomputed():
    """As a layer calls it: in a loop over microbatches, activations computed again backward."""
    part = exchange(chunks=2)
    names, axes = ("expert",), {"expert": 4}

    @jax.checkpoint
    def layer(x, logits, weights):
        routing = route(logits, 2)
        y, _ = part.run(x, routing, weights, num_experts=8, expert_axes=names, platform="cpu")
        return x + y

    def local(x, logits, weights):
        pieces = tuple(a.reshape(3, -1, a.shape[1]) for a in (x, logits))
        return jax.lax.map(lambda piece: layer(*piece, weights), pieces).reshape(x.shape)

    spec = jax.sharding.PartitionSpec(names)
    run = jax.shard_map(local, mesh=mesh_of(axes), in_specs=spec, out_specs=spec)
    args, d_out = inputs(8, False, None), draw(TOKENS, WIDTH, seed=2)
    expected = with_gradients(lambda x, r, w: x + mixture(x, r, w, 2), d_out)(*args)
    assert max(distance(with_gradients(run, d_out)(*args), expected)) <= LIMIT


def test_replayed_choices_are_those_made():
    ids = jnp.asarray(fixed_expert_ids("lognormal:1", TOKENS, 8, 2, seed=3))
    run = sharded(exchange(), {"expert": 4}, top_k=2, experts=8, gated=False)
    args, d_out = inputs(8, False, None), draw(TOKENS, WIDTH, seed=2)
    found = with_gradients(lambda *a: run(*a, ids)[0], d_out)(*args)
    expected = with_gradients(lambda x, r, w: mixture(x, r, w, 2, ids), d_out)(*args)
    assert max(distance(found, expected)) <= LIMIT
    assert (
        distance(mixture(args[0], args[1], args[2], 2), expected[0])[0] > 1e-2
    )  # not the router's own


def kept_of(ids_Tk, places, priority):
    """Choices that fit, by a loop over tokens: [T, k] of bool."""
    room, kept = dict(places), np.zeros(ids_Tk.shape, bool)
    for t in priority:
        for j, expert in enumerate(ids_Tk[t]):
            kept[t, j] = room[expert] > 0
            room[expert] -= kept[t, j]
    return kept


def masked_mixture(x, logits, weights, ids, kept):
    """Top-2 with choices left out: gates as if all were there."""
    dense = jnp.zeros((len(ids), logits.shape[1]), bool)
    for j in range(ids.shape[1]):
        dense = dense.at[jnp.arange(len(ids), dtype=ids.dtype), ids[:, j]].max(kept[:, j])
    p = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), ids, axis=1).sum(1, keepdims=True)
    gates = jnp.where(dense, jax.nn.softmax(logits, axis=-1) / p, 0)
    hidden = jax.nn.gelu(jnp.einsum("td,edf->tef", x, weights.up_eDF))
    return jnp.einsum("tef,efd,te->td", hidden, weights.down_eFD, gates)


def test_capacity_drops_later_tokens_and_counts_them():
    devices, experts, chunks, factor = 4, 8, 2, 0.75
    part = exchange(capacity_factor=factor, chunks=chunks)
    ids = fixed_expert_ids("lognormal:1", TOKENS, experts, 2, seed=5)
    each = TOKENS // devices // chunks
    room = int(np.ceil(factor * each * 2 / experts))
    kept = np.concatenate([
        kept_of(ids[first : first + each], dict.fromkeys(range(experts), room), range(each))
        for first in range(0, TOKENS, each)
    ])  # fmt: skip
    assert 0 < (~kept).sum() < kept.size
    run = sharded(part, {"expert": devices}, top_k=2, experts=experts, gated=False)
    args, d_out = inputs(experts, False, None), draw(TOKENS, WIDTH, seed=2)
    y, dropped = jax.jit(run)(*args, jnp.asarray(ids))
    assert int(dropped) == (~kept).sum()

    def expected(x, logits, weights):
        return masked_mixture(x, logits, weights, jnp.asarray(ids), jnp.asarray(kept))

    found = with_gradients(lambda *a: run(*a, jnp.asarray(ids))[0], d_out)(*args)
    assert max(distance(found, with_gradients(expected, d_out)(*args))) <= LIMIT
    assert max(distance(y, found[0])) == 0


def test_node_aware_capacity_counts_every_choice_it_drops():
    """Both steps drop: what is missing in the output is what was counted, each at gate 1/2."""
    part = exchange(axis=NODES, node_aware=True, capacity_factor=0.5, chunks=2)
    experts = 8
    run = sharded(part, {"node": 2, "expert": 4}, top_k=2, experts=experts, gated=False)
    ids = jnp.asarray(fixed_expert_ids("lognormal:1", 96, experts, 2, seed=5))
    # Every expert returns gelu(1) of a token that is 1.
    weights = ExpertWeights(jnp.full((experts, 1, 1), 1.0), jnp.full((experts, 1, 1), 1.0))
    x, logits = jnp.ones((96, 1)), jnp.zeros((96, experts))
    y, dropped = jax.jit(run)(x, logits, weights, ids)
    whole = float(jax.nn.gelu(jnp.float64(1.0)))
    missing = (96 * whole - y.sum()) / (whole / 2)
    assert 96 < dropped < 192
    assert missing == pytest.approx(int(dropped), abs=1e-9)


@pytest.mark.parametrize("factor", [4.0, 8.0])
def test_capacity_that_is_ample_drops_nothing(factor):
    part = exchange(axis=NODES, node_aware=True, capacity_factor=factor)
    run = sharded(part, {"node": 2, "expert": 4}, top_k=2, experts=8, gated=False)
    args = inputs(8, False, None)
    ids = jnp.asarray(fixed_expert_ids("uniform", TOKENS, 8, 2))
    y, dropped = jax.jit(run)(*args, ids)
    expected = mixture(args[0], args[1], args[2], 2, ids)
    assert dropped == 0
    assert max(distance(y, expected)) <= LIMIT


def test_half_precision_stays_close_and_keeps_its_dtype():
    """Weight gradients of many tiles and chunks are added up in float32."""
    run = sharded(exchange(chunks=8), {"expert": 4}, top_k=2, experts=4, gated=False)
    x, logits, weights = inputs(4, False, None)
    half = jax.tree.map(lambda a: a.astype(jnp.float16), (x, weights))
    d_out = draw(TOKENS, WIDTH, seed=2)

    def found(x, logits, weights):
        return run(x, logits, weights, None)[0]

    y, grads = with_gradients(found, d_out.astype(jnp.float16))(half[0], logits, half[1])
    assert {a.dtype for a in jax.tree.leaves((y, grads[0], grads[2]))} == {jnp.dtype("float16")}
    exact = with_gradients(lambda x, r, w: mixture(x, r, w, 2), d_out)(x, logits, weights)
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (y, grads))
    assert max(distance(wide, exact)) < 3e-3


def test_parts_are_data():
    for name, part in (("local", LocalExperts()), ("exchange", exchange(axis=NODES))):
        fields = json.loads(json.dumps(dataclasses.asdict(part)))
        assert EXPERT_PARTS[name](**fields) == part
    assert exchange(exchange="ragged").compiled_exchange("gpu") == "ragged"
    assert exchange(exchange="ragged").compiled_exchange("cpu") == "ragged, emulated by dense"
    assert exchange().compiled_exchange("gpu") == "dense"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"node_aware": True}, "node_aware needs axis="),
        ({"capacity_factor": 0.0}, "a number above 0"),
        ({"chunks": 0}, "chunks is 0"),
        ({"exchange": "sparse"}, "unknown exchange 'sparse'"),
    ],
)
def test_what_cannot_be_is_said(fields, message):
    with pytest.raises(ValueError, match=message):
        exchange(**fields)


def test_experts_and_weights_must_agree():
    run = sharded(exchange(), {"expert": 4}, top_k=1, experts=6, gated=False)
    with pytest.raises(ValueError, match="6 experts over 4 devices are 1.5 each"):
        jax.eval_shape(run, *inputs(8, False, None), None)
    run = sharded(exchange(), {"expert": 4}, top_k=1, experts=8, gated=False, over=(),
                  tokens=("expert",))  # fmt: skip
    with pytest.raises(ValueError, match="Make them agree"):
        jax.eval_shape(run, *inputs(8, False, None), None)
