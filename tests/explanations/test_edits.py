"""A jaxpr with edits computes the same, and differs where it was edited."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import parallax as px
from parallax.explanations.edits import Edit, evaluate, inner_jaxprs, open_jaxpr
from parallax.explanations.equations import equations, updated_arguments

MESH = px.MeshSpec({"data": 4, "model": 4}).build()


def layer(x, w):
    return jnp.sin(x @ w), None


def nested(x, weights):
    """Products inside a checkpointed scan, a branch and a jitted function."""
    y, _ = jax.lax.scan(jax.checkpoint(layer), x, weights)
    y = jax.lax.cond(y.sum() > 0, lambda y: y @ weights[0], lambda y: y * 2, y)
    return jax.jit(lambda y: (y @ weights[1]).sum())(y)


X, W = np.ones((16, 16)), np.full((3, 16, 16), 0.1)


def traced(function, *args):
    return jax.jit(function).trace(*args).jaxpr


def products(jaxpr, path=()):
    for index, eqn in enumerate(open_jaxpr(jaxpr)[0].eqns):
        if eqn.primitive.name == "dot_general":
            yield (*path, index)
        for name, position, inner in inner_jaxprs(eqn):
            yield from products(inner, (*path, index, name, position))


def test_without_edits_it_is_the_same_function():
    jaxpr = traced(jax.value_and_grad(nested), X, W)
    found = jax.jit(lambda *args: evaluate(jaxpr, args, (), MESH))(X, W)
    expected = jax.tree.leaves(jax.jit(jax.value_and_grad(nested))(X, W))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_each_product_can_be_constrained_however_deep():
    jaxpr = traced(jax.value_and_grad(nested), X, W)
    expected = jax.tree.leaves(jax.jit(jax.value_and_grad(nested))(X, W))
    paths = list(products(jaxpr))
    assert len(paths) > 5
    assert max(map(len, paths)) > 4  # in a scan in a checkpoint
    for path in paths:
        edits = (Edit(path, "constrain", P("data", "model")),)
        run = jax.jit(lambda *args, edits=edits: evaluate(jaxpr, args, edits, MESH))
        with jax.set_mesh(MESH):
            text = run.lower(X, W).as_text()
            found = run(X, W)
        assert text.count('"data"') >= 1, path
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_constraints_are_dropped_or_replaced():
    def function(x):
        return jax.lax.with_sharding_constraint(x * 2, P("model")) + 1

    with jax.set_mesh(MESH):
        jaxpr = traced(function, X)
        (path,) = [
            (i,) for i, e in enumerate(jaxpr.eqns) if e.primitive.name == "sharding_constraint"
        ]
        for edit, names in ((Edit(path, "drop"), ()), (Edit(path, "drop", P("data")), ("data",))):
            run = jax.jit(lambda x, edit=edit: evaluate(jaxpr, [x], (edit,), MESH))
            text = run.lower(X).as_text()
            assert text.count("sharding_constraint") == len(names)
            np.testing.assert_array_equal(run(X)[0], X * 2 + 1)


def test_a_product_is_narrowed_and_cast_back():
    def function(x, w):
        return jnp.dot(x, w, preferred_element_type=jnp.float32)

    x = X.astype(jnp.bfloat16)
    jaxpr = traced(function, x, x)
    (path,) = products(jaxpr)
    run = jax.jit(lambda *args: evaluate(jaxpr, args, (Edit(path, "narrow"),), MESH))
    assert "tensor<16x16xbf16>\n" in run.lower(x, x).as_text() + "\n"
    assert run(x, x)[0].dtype == jnp.float32


def step(params, cache, x, index):
    def loss(params):
        return jnp.sum((x @ params["w"]) ** 2)

    gradients = jax.grad(loss)(params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
    cache = jax.lax.dynamic_update_slice(cache, x[None], (index, 0, 0))
    return params, cache, gradients


def test_updated_arguments_are_found_and_gradients_are_not():
    args = ({"w": X}, np.zeros((4, 16, 16)), X, 0)
    jaxpr = traced(step, *args)
    assert updated_arguments(jaxpr, list(jaxpr.invars)) == {0: (0, False), 1: (1, True)}


def test_caches_written_in_a_scan_over_layers_are_found():
    def decode(cache, x):
        def layer(x, own):
            own = jax.lax.dynamic_update_slice(own, x[None], (0, 0, 0))
            return x + own.sum(0), own

        return jax.lax.scan(layer, x, cache)

    jaxpr = traced(decode, np.zeros((3, 4, 16, 16)), X)
    assert updated_arguments(jaxpr, list(jaxpr.invars))[1] == (0, True)


def test_equations_know_their_line_their_arguments_and_how_often_they_run():
    jaxpr = traced(nested, X, W)
    found = equations(jaxpr, [frozenset({0}), frozenset({1})])
    dots = [e for e in found if e.name == "dot_general"]
    assert dots[0].times == 3
    assert dots[0].holds[1] == {1}  # a layer's weights, through the scan
    assert dots[0].line is not None
    assert "x @ w" in dots[0].line.code
    assert dots[0].flops == 2 * 16**3


@pytest.mark.parametrize("function", [lambda x: x + jnp.sin(x @ x), lambda x: x @ x])
def test_what_a_residual_stream_starts_from_is_an_update_too(function):
    """Only the share of the arguments' bytes tells a residual stream from a parameter."""
    jaxpr = traced(function, X)
    expected = {0: (0, False)} if any(e.primitive.name == "add" for e in jaxpr.eqns) else {}
    assert updated_arguments(jaxpr, list(jaxpr.invars)) == expected
