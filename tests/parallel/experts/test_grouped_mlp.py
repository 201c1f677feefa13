"""Rows through their experts' MLPs: exact, at a cost that follows the rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.parallel.experts import ExpertWeights, grouped_mlp
from parallax.parallel.experts.grouped_mlp import gradient_sink
from tests.parallel.experts.textbook import (
    distance,
    draw,
    every_expert,
    expert_weights,
    with_gradients,
)

pytestmark = pytest.mark.slow

ROWS, WIDTH, HIDDEN = 90, 4, 6


def masked(x, expert, weights):
    """Every expert on every row, kept where it is the row's."""
    y = every_expert(x, weights)
    here = expert[None, :] == jnp.arange(len(y), dtype=expert.dtype)[:, None]
    return jnp.where(here[:, :, None], y, 0).sum(axis=0)


def grouped(tile):
    return lambda x, expert, weights: grouped_mlp(x, expert, weights, tile=tile)[0]


# name: expert of each row
ROUTES = {
    "mixed, some empty": np.random.default_rng(0).integers(-1, 3, ROWS),
    "one expert has all": np.full(ROWS, 1),
    "nothing at all": np.full(ROWS, -1),
    "others' experts": np.where(np.arange(ROWS) % 3 == 0, 7, np.arange(ROWS) % 2),
}


@pytest.mark.parametrize("gated", [False, True], ids=["gelu", "gated"])
@pytest.mark.parametrize("name", ROUTES)
def test_equals_every_expert_on_every_row(name, gated):
    expert = jnp.asarray(ROUTES[name], jnp.int32)
    x, weights = draw(ROWS, WIDTH), expert_weights(3, WIDTH, HIDDEN, gated)
    d_out = draw(ROWS, WIDTH, seed=1)
    found = with_gradients(lambda x, w: grouped(7)(x, expert, w), d_out)(x, weights)
    expected = with_gradients(lambda x, w: masked(x, expert, w), d_out)(x, weights)
    assert max(distance(found, expected)) <= 1e-14


@pytest.mark.parametrize("kind", ["none", "gelu", "clamped"])
def test_biases_and_gates(kind):
    expert = jnp.asarray(ROUTES["mixed, some empty"], jnp.int32)
    weights = expert_weights(3, WIDTH, HIDDEN, kind != "none", kind=kind, biases=True)
    x, d_out = draw(ROWS, WIDTH), draw(ROWS, WIDTH, seed=1)
    found = with_gradients(lambda x, w: grouped(7)(x, expert, w), d_out)(x, weights)
    expected = with_gradients(lambda x, w: masked(x, expert, w), d_out)(x, weights)
    assert max(distance(found, expected)) <= 1e-14
    wrong = dataclasses.replace(weights, down_bias_eD=draw(3, 5))
    with pytest.raises(ValueError, match=r"expected down_bias_eD \(3, 4\)"):
        grouped_mlp(x, expert, wrong, tile=7)
    if kind != "none":
        with pytest.raises(ValueError, match="expected silu, gelu or clamped, got 'relu'"):
            grouped_mlp(x, expert, dataclasses.replace(weights, kind="relu"), tile=7)


@pytest.mark.parametrize("tile", [1, 8, 64, 1000])
def test_any_tile_gives_the_same(tile):
    expert = jnp.asarray(ROUTES["mixed, some empty"], jnp.int32)
    x, weights = draw(ROWS, WIDTH), expert_weights(3, WIDTH, HIDDEN, False)
    y, executed = jax.jit(lambda *a: grouped_mlp(*a, tile=tile))(x, expert, weights)
    assert max(distance(y, masked(x, expert, weights))) <= 1e-14
    tile = min(tile, ROWS)
    counts = np.bincount(ROUTES["mixed, some empty"] + 1)[1:]
    assert int(executed) == sum(-(-c // tile) * tile for c in counts)


def test_rows_executed_follow_the_rows_received():
    """10 tiles an expert and more: at most a tenth beyond, whatever the buffer's size."""
    rows, tile, received = 4096, 16, (161, 333, 170)
    expert = np.full(rows, -1)
    places = np.random.default_rng(0).permutation(rows)[: sum(received)]
    expert[places] = np.repeat(np.arange(3), received)
    weights = expert_weights(3, WIDTH, HIDDEN, False)
    _, executed = jax.jit(lambda *a: grouped_mlp(*a, tile=tile))(
        draw(rows, WIDTH), jnp.asarray(expert, jnp.int32), weights
    )
    assert sum(received) <= int(executed) <= 1.1 * sum(received)


def test_loops_run_as_long_as_there_are_tiles():
    """No product over the whole buffer: the only matrix products are of one tile."""
    weights = expert_weights(3, WIDTH, HIDDEN, True)

    def loss(x, expert, weights):
        return grouped_mlp(x, expert, weights, tile=8)[0].sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 2)))(
        draw(4096, WIDTH), jnp.zeros(4096, jnp.int32), weights
    )
    sizes: set[tuple] = {v.aval.shape for v in products(jaxpr.jaxpr)}
    assert sizes
    assert all(4096 not in shape for shape in sizes), sizes


def products(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield from (*equation.invars, *equation.outvars)
        for value in equation.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


def test_gradients_of_narrow_weights_are_added_up_wide():
    """4096 equal terms of 1 beside a weight gradient of 2048: float16 stops counting there."""
    rows = 4096
    weights = ExpertWeights(jnp.full((1, 1, 1), 8.0), jnp.full((1, 1, 1), 1.0))
    half = jax.tree.map(lambda a: a.astype(jnp.float16), weights)
    frozen, sink = gradient_sink(half)

    def loss(sink):
        x, expert = jnp.ones((rows, 1), jnp.float16), jnp.zeros(rows, jnp.int32)
        calls = [grouped_mlp(x, expert, frozen, tile=1, sink=sink)[0] for _ in range(2)]
        return sum(y.astype(jnp.float32).sum() for y in calls)

    total = jax.jit(jax.grad(loss))(sink).down_eFD
    assert total.dtype == jnp.float32
    assert float(total.squeeze()) == 2 * rows * 8.0

    def through(weights):
        frozen, sink = gradient_sink(weights)
        x, expert = jnp.ones((rows, 1), jnp.float16), jnp.zeros(rows, jnp.int32)
        y, _ = grouped_mlp(x, expert, frozen, tile=1, sink=sink)
        return y.astype(jnp.float32).sum() + weights.up_eDF.astype(jnp.float32).sum() * 5

    grads = jax.jit(jax.grad(through))(half)
    assert grads.down_eFD.dtype == jnp.float16
    assert float(grads.down_eFD.squeeze()) == rows * 8.0
    # What is used beside the experts keeps its own gradient: gelu'(8) is 1.
    assert float(grads.up_eDF.squeeze()) == rows + 5 or float(grads.up_eDF.squeeze()) == rows + 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 0}, "a tile of 0 rows"),
        ({"x": draw(3, 5)}, r"expected x \[R, D\]"),
        ({"weights": ExpertWeights(draw(2, 4, 6), draw(2, 5, 4))}, r"expected up \[e, D, F\]"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    given = {"x": draw(3, 4), "weights": expert_weights(2, 4, 6, False), "tile": 2} | change
    with pytest.raises(ValueError, match=message):
        grouped_mlp(given["x"], jnp.zeros(3, jnp.int32), given["weights"], tile=given["tile"])
