"""Integer products against the same rounding done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.compression import compress, parse_format
from parallax.parallel.products import Int8Weight, product

RANDOM = np.random.default_rng(0)


def int8(w, inputs=(0,)):
    packed = compress(jnp.asarray(w), parse_format("w8a8"), inputs)
    return Int8Weight(packed.values, packed.scales)


def rounded(x, summed):
    step = np.abs(x).max(summed, keepdims=True) / 127
    return np.round(x / step) * step


@pytest.mark.parametrize(
    ("spec", "x_shape", "w_shape", "inputs"),
    [
        ("bld,dhk->blhk", (2, 3, 16), (16, 4, 8), (0,)),
        ("blhk,hkd->bld", (2, 3, 4, 8), (4, 8, 5), (0, 1)),
        ("blf,fd->bld", (2, 3, 16), (16, 5), (0,)),
    ],
)
def test_integers_with_a_scale_a_token_and_a_channel(spec, x_shape, w_shape, inputs):
    x, w = RANDOM.normal(size=x_shape), RANDOM.normal(size=w_shape)
    weight = int8(w, inputs)
    found = product(jnp.asarray(x), weight, spec)
    dense = np.asarray(weight.values, float) * np.asarray(weight.scales, float)
    expected = np.einsum(spec, rounded(x, tuple(range(2, x.ndim))), dense)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    exact = np.einsum(spec, x, w)
    assert 1e-4 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 2e-2


def test_a_row_of_zeros_stays_zero():
    found = product(jnp.zeros((1, 2, 8)), int8(np.ones((8, 4))), "blf,fd->bld")
    np.testing.assert_array_equal(found, np.zeros((1, 2, 4)))


def test_integers_are_multiplied_as_integers():
    jaxpr = jax.make_jaxpr(lambda x: product(x, int8(np.ones((8, 4))), "blf,fd->bld"))
    dots = [e for e in jaxpr(jnp.zeros((1, 2, 8))).eqns if e.primitive.name == "dot_general"]
    types = [x.aval.str_short() for x in (*dots[0].invars, *dots[0].outvars)]
    assert types == ["int8[1,2,8]", "int8[8,4]", "int32[1,2,4]"]
