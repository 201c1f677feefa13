"""The ledger of a jaxpr: collectives and their bytes before any compiler."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from parallax.hlo import HloError, jaxpr_ledger

P = PartitionSpec
AXES = {"a": 4, "b": 4}
MESH = AbstractMesh((4, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def _ledger(body, axes=AXES, **kwargs):
    mapped = jax.shard_map(
        body, mesh=MESH, in_specs=P("a"), out_specs=P("a"), check_vma=False, **kwargs
    )
    shape = jax.ShapeDtypeStruct((64, 8), jnp.float32)
    return jaxpr_ledger(jax.make_jaxpr(mapped)(shape), axes)


def test_sub_jaxprs_of_every_kind_are_walked():
    def body(x):
        inner = jax.checkpoint(jax.jit(lambda x: lax.psum(x, "b")))
        return lax.scan(lambda x, _: (inner(x), None), x, None, length=3)[0]

    (moved,) = _ledger(body)
    assert (moved.kind, moved.axes, moved.count) == ("all-reduce", ("b",), 3)
    assert moved.wire_bytes == 1.5 * 16 * 8 * 4


def test_custom_derivatives_are_walked_once():
    @jax.custom_vjp
    def f(x):
        return lax.psum(x, "b")

    f.defvjp(lambda x: (f(x), None), lambda _, g: (g,))
    assert [c.count for c in _ledger(f)] == [1]


def test_axes_are_in_mesh_order():
    (moved,) = _ledger(lambda x: lax.psum(x, ("b", "a")))
    assert (moved.axes, moved.group_size) == (("a", "b"), 16)


def test_a_permute_that_moves_nothing_is_no_transfer():
    assert len(_ledger(lambda x: lax.ppermute(x, "a", [(i, i) for i in range(4)]))) == 0


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (lambda x: lax.psum(x, "a", axis_index_groups=[[0, 1], [2, 3]]), "axis_index_groups"),
        (lambda x: lax.pbroadcast(x, "a", 0), "'pbroadcast' over a mesh axis"),
        (lambda x: lax.cond(x[0, 0] > 0, lambda: lax.psum(x, "a"), lambda: x), "'cond'"),
    ],
)
def test_what_is_not_understood_is_refused(body, why):
    with pytest.raises(HloError, match=why):
        _ledger(body)


def test_an_axis_that_the_mesh_axes_lack_is_refused():
    with pytest.raises(HloError, match=r"\['b'\]"):
        _ledger(lambda x: lax.psum(x, "b"), axes={"a": 4})


def test_a_partly_manual_map_is_refused():
    with pytest.raises(HloError, match=r"\['b'\] to the partitioner"):
        _ledger(lambda x: lax.psum(x, "a"), axis_names={"a"})
