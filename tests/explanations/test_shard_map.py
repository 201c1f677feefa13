"""Explanations inside jax.shard_map: arrays are parts already, and changes keep the axes' names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from parallax.explanations.edits import Edit, evaluate
from parallax.explanations.equations import equations
from parallax.explanations.gathering import needed_flops

ROWS = 32


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def path_of(jaxpr, name):
    return next(e.path for e in equations(jaxpr, [frozenset()]) if e.name == name)


def test_a_sum_inside_is_narrowed(mesh):
    def total(x):
        return lax.psum(x, "data")

    mapped = jax.shard_map(total, mesh=mesh, in_specs=P("data"), out_specs=P())
    x = jnp.linspace(0, 1, ROWS, dtype=jnp.float32)
    jaxpr = jax.make_jaxpr(mapped)(x)
    name = next(e.name for e in equations(jaxpr, [frozenset()]) if e.name.startswith("psum"))
    edits = (Edit(path_of(jaxpr, name), "narrow"),)
    (found,) = jax.jit(lambda x: evaluate(jaxpr, (x,), edits, mesh))(x)
    exact = x.reshape(4, -1).sum(0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=2**-6)
    assert np.any(found != exact)


def test_a_loop_inside_is_left_alone(mesh):
    def loop(x):
        return lax.scan(lambda total, _: (total + jnp.sin(x), None), x, None, length=3)[0]

    mapped = jax.shard_map(loop, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    x = jnp.ones(ROWS)
    jaxpr = jax.make_jaxpr(mapped)(x)
    edits = (Edit(path_of(jaxpr, "sin"), "constrain", P()),)
    with pytest.raises(NotImplementedError, match=r"in a loop or call inside jax\.shard_map"):
        jax.jit(lambda x: evaluate(jaxpr, (x,), edits, mesh))(x)


@pytest.mark.parametrize(
    ("manual", "spec", "devices"),
    [(None, P(), 16), ({"data", "model"}, P("data"), 4), ({"data"}, P("data"), 16)],
)
def test_needed_flops_are_those_of_whole_arrays_by_device(mesh, manual, spec, devices):
    def product(x, w):
        return lax.scan(lambda y, _: (y @ w, None), x, None, length=3)[0]

    mapped = product
    if manual is not None:
        mapped = jax.shard_map(
            product, mesh=mesh, in_specs=(spec, P()), out_specs=spec, axis_names=manual
        )
    with jax.set_mesh(mesh):
        jaxpr = jax.make_jaxpr(mapped)(jnp.ones((ROWS, 8)), jnp.ones((8, 8)))
    found = needed_flops(equations(jaxpr, [frozenset()] * 2), dict(mesh.shape))
    assert sum(found.values()) == 3 * 2 * ROWS * 8 * 8 / devices
