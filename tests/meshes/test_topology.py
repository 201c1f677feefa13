"""The CUDA compiler accepts every named cluster's target config and compiles for it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from parallax.meshes.cluster import CLUSTERS
from parallax.meshes.mesh import MeshSpec
from parallax.meshes.topology import topology_devices

pytest.importorskip("jax_plugins.xla_cuda12", reason="needs pip install -e '.[aot]'")


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_a_sharded_program_compiles(cluster):
    devices = topology_devices(cluster)
    assert {device.device_kind for device in devices} == {cluster.gpu.device_kind}
    mesh = MeshSpec({"node": cluster.nodes, "tensor": cluster.gpus_per_node}).build(devices)
    axes = ("node", "tensor")

    # The GEMM and the reduction beside it are generated kernels, so ptxas has to take the GPU.
    def project(x_TF, w_FD):
        y_TD = x_TF @ w_FD
        return jax.lax.psum(jax.nn.softmax(y_TD), axes)

    rows, inner, columns = 256, 64 * cluster.devices, 128
    program = jax.jit(
        jax.shard_map(project, mesh=mesh, in_specs=(P(None, axes), P(axes)), out_specs=P())
    )
    compiled = program.lower(
        jax.ShapeDtypeStruct(
            (rows, inner), jnp.bfloat16, sharding=NamedSharding(mesh, P(None, axes))
        ),
        jax.ShapeDtypeStruct((inner, columns), jnp.bfloat16, sharding=NamedSharding(mesh, P(axes))),
    ).compile()

    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None
    assert text is not None
    assert memory.argument_size_in_bytes == 2 * 64 * (rows + columns)
    assert f"num_partitions={cluster.devices}" in text
    assert "all-reduce" in text
