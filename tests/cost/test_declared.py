"""The costs that a hand-written kernel declares survive in the compiled program."""

import pytest

from parallax.commands.inspect import inspect_text
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment, missing_compiler


def compile_kernel(declared, *, on_progress):
    """Text of a program with one Mosaic GPU kernel, for one H100 that is not there."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jax.experimental.xla_metadata import set_xla_metadata
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from parallax.meshes.cluster import cluster
    from parallax.meshes.topology import topology_devices

    mesh = Mesh(
        np.array(topology_devices(cluster("h100_1x1"))), ("x",), axis_types=(AxisType.Auto,)
    )
    like = jax.ShapeDtypeStruct((128, 128), jnp.float32)

    def run(x):
        with set_xla_metadata(**declared):
            return plgpu.kernel(lambda x_ref, out_ref: None, out_type=like)(x)

    x = jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(run).lower(x).compile().as_text()


@pytest.fixture(scope="module")
def texts():
    if missing := missing_compiler():
        pytest.skip(missing)
    environment = compile_environment()
    declared = {"cost_flops": 4e12, "cost_bytes": 2e6}
    products = {"cost_of": "products"} | declared
    return [
        run_in_child(compile_kernel, d, environment=environment) for d in (declared, {}, products)
    ]


@pytest.mark.slow
def test_declared_flops_and_bytes_are_priced(texts):
    found = inspect_text(texts[0], cluster="h100_1x1")
    assert found.cost.flops == 4e12
    assert found.cost.memory_bytes == pytest.approx(2e6)
    assert found.cost.seconds > 4e12 / 989e12
    assert found.work.unpriced == ()


def test_flops_are_of_what_a_kernel_computes(texts):
    attention, products = (inspect_text(texts[i], cluster="h100_1x1").cost for i in (0, 2))
    assert attention.seconds == products.seconds
    assert attention.terms["attention"] == products.terms["matrix products"]


def test_one_that_says_nothing_is_named_and_priced_by_its_bytes(texts):
    found = inspect_text(texts[1], cluster="h100_1x1")
    assert found.cost.flops == 0
    assert found.cost.memory_bytes == 2 * 128 * 128 * 4
    (target,) = found.work.unpriced
    assert target.startswith("mosaic_gpu")
