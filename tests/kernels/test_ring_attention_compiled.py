"""A 16-GPU ring of the Mosaic kernel, compiled for the H100 with no GPU."""

import re

import pytest

from parallax.commands.inspect import inspect_text
from parallax.kernels.ring_attention.cases import Case
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment

RING = Case(512, "bfloat16", 625, 625, heads=4, kv_heads=2)


def compile_ring(case, is_causal, order, gradients, *, on_progress):
    """Text of a 16-GPU ring of the Mosaic kernel, under shard_map's checks; with its gradients."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from parallax.meshes.cluster import cluster
    from parallax.meshes.topology import topology_devices
    from parallax.parallel.ring_attention import ring_attention

    mesh = Mesh(
        np.array(topology_devices(cluster("h100_2x8"))), ("seq",), axis_types=(AxisType.Auto,)
    )
    spec = PartitionSpec(None, "seq")

    def like(heads):
        shape = (case.batch, 16 * case.q_length, heads, case.head_dim)
        return jax.ShapeDtypeStruct(shape, case.dtype, sharding=NamedSharding(mesh, spec))

    def local(q, k, v):
        return ring_attention(q, k, v, axis_name="seq", is_causal=is_causal, order=order,
                              implementation="mosaic")  # fmt: skip

    run = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=True)
    if gradients:
        forward = run

        def loss(q, k, v):
            return forward(q, k, v).astype(jnp.float32).sum()

        run = jax.value_and_grad(loss, (0, 1, 2))
    args = like(case.heads), like(case.kv_heads), like(case.kv_heads)
    return jax.jit(run).lower(*args).compile().as_text()


def compiled(is_causal, order, gradients):
    return run_in_child(
        compile_ring, RING, is_causal, order, gradients, environment=compile_environment()
    )


@pytest.mark.full
@pytest.mark.parametrize(
    ("is_causal", "order"), [(False, "natural"), (True, "zigzag")], ids=["full", "zigzag"]
)
def test_the_ring_calls_it_and_its_cost_is_priced(aot, is_causal, order):
    text = compiled(is_causal, order, gradients=False)
    found = inspect_text(text, cluster="h100_2x8")
    assert "mosaic_gpu" in text
    assert found.work.unpriced == ()
    if order == "natural":
        # What steps carry is neither padded nor copied on its way from one to the next.
        assert not re.search(r"= f32\[1,4,6\d\d(,512)?\]\S* (copy|pad|slice)\(", text)
    # Whole tiles of 64 by 64 over 16 pieces; in zigzag order half of the sequence is hidden.
    useful = RING.flops * 16 * (0.5 if is_causal else 1)
    assert useful <= found.cost.flops <= 1.25 * useful


@pytest.mark.full
def test_its_gradients_are_kernels_too_and_priced(aot):
    text = compiled(False, "natural", gradients=True)
    found = inspect_text(text, cluster="h100_2x8")
    assert all(f"ring_attention_backward_{x}" in text for x in ("dq", "dk", "dv"))
    assert found.work.unpriced == ()
    # Two products forward; nine backward for heads of 512, where five would do.
    useful = RING.flops * 16 * (2 + 9) / 2
    assert useful <= found.cost.flops <= 1.4 * useful
