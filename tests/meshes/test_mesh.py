"""MeshSpec: order, round trips, meshes built from it, and what it refuses."""

import pickle

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.meshes.mesh import MESH_AXES, MeshSpec
from parallax.meshes.paper_meshes import PAPER_MESHES, TENSOR_8_STAGE_2

specs = st.permutations(MESH_AXES).flatmap(
    lambda names: st.lists(st.integers(1, 300), max_size=len(names)).map(
        lambda sizes: MeshSpec(list(zip(names, sizes, strict=False)))
    )
)


@given(specs)
def test_text_round_trip(spec):
    assert MeshSpec.parse(str(spec)) == spec


def test_order_is_kept_and_matters():
    spec = MeshSpec({"tensor": 8, "stage": 2})
    assert spec.axes == (("tensor", 8), ("stage", 2))
    assert spec != TENSOR_8_STAGE_2
    assert MeshSpec.parse(" tensor = 8 , stage=2 ") == spec


def test_value_semantics():
    again = MeshSpec({"stage": 2, "tensor": 8})
    assert again == TENSOR_8_STAGE_2
    assert hash(again) == hash(TENSOR_8_STAGE_2)
    assert pickle.loads(pickle.dumps(again)) == again
    assert repr(again) == "MeshSpec(stage=2, tensor=8)"
    assert (again["tensor"], again.size, again.names) == (8, 16, ("stage", "tensor"))


@pytest.mark.parametrize("spec", PAPER_MESHES.values(), ids=PAPER_MESHES)
def test_paper_meshes_hold_sixteen_devices_row_major(spec):
    mesh = spec.build()
    assert dict(mesh.shape) == dict(spec.axes)
    assert mesh.axis_names == spec.names
    assert list(mesh.devices.flat) == jax.devices()
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert mesh.abstract_mesh.shape == spec.abstract().shape


def test_one_device():
    spec = MeshSpec({})
    assert str(spec) == "single"
    assert spec.size == 1
    assert spec.build(jax.devices()[:1]).size == 1


def test_last_axis_is_nearest():
    mesh = TENSOR_8_STAGE_2.build()
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    assert ids[1].tolist() == list(range(8, 16))


def test_replace():
    assert TENSOR_8_STAGE_2.replace(tensor=4) == MeshSpec({"stage": 2, "tensor": 4})
    with pytest.raises(ValueError, match="no mesh axis 'seq'; it has stage, tensor"):
        TENSOR_8_STAGE_2.replace(seq=4)


def test_build_wants_exactly_its_devices():
    with pytest.raises(ValueError, match=r"needs 32 devices, got 16: run under px.virtual"):
        MeshSpec({"seq": 32}).build()
    with pytest.raises(ValueError, match=r"needs 4 devices, got 16: .*jax.devices\(\)\[:4\]"):
        MeshSpec({"seq": 4}).build()
    assert MeshSpec({"seq": 4}).build(jax.devices()[4:8]).devices[0] == jax.devices()[4]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"a=b": 2}, "mesh axis 'a=b': expected a name without"),
        ({"": 2}, "mesh axis '': expected a name without"),
        ({3: 2}, "mesh axis 3: expected a name without"),
        ([("seq", 2), ("seq", 2)], "'seq' is given twice"),
        ({"seq": 0}, "size 0, expected an integer >= 1"),
        ({"seq": 2.0}, r"size 2\.0, expected an integer"),
        ({"seq": True}, "size True, expected an integer"),
    ],
)
def test_refused_axes(axes, message):
    with pytest.raises(ValueError, match=message):
        MeshSpec(axes)


@pytest.mark.parametrize("text", ["", "seq", "seq=", "=4", "seq=four", "seq=-4", "seq=4,", "seq=²"])
def test_refused_text(text):
    with pytest.raises(ValueError, match="Write for example seq=4,tensor=4"):
        MeshSpec.parse(text)


def test_missing_axis():
    with pytest.raises(KeyError, match="no mesh axis 'seq'; it has stage, tensor"):
        TENSOR_8_STAGE_2["seq"]
