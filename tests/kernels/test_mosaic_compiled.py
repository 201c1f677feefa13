"""What ships, as machine code for the H100: wgmma, shared memory, spills; and a ring of it."""

import re
from typing import Any

import pytest

from parallax.inspecting import inspect_text
from parallax.kernels.ring_attention.cases import SHIPPED, Case
from parallax.kernels.ring_attention.tiles import SHARED_BYTES_LIMIT, TILES
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment

RING = Case(512, "bfloat16", 625, 625, heads=4, kv_heads=2)


def compile_cases(cases, *, on_progress):
    """For each case PTX and what the assembler and Mosaic say of it."""
    import os
    import tempfile
    from pathlib import Path

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from parallax.kernels.ring_attention import Carry, attention_step
    from parallax.meshes.cluster import cluster
    from parallax.meshes.topology import topology_devices

    mesh = Mesh(
        np.array(topology_devices(cluster("h100_1x1"))), ("x",), axis_types=(AxisType.Auto,)
    )
    whole = NamedSharding(mesh, PartitionSpec())
    os.environ.update(MOSAIC_GPU_DUMP_PTX="1", MOSAIC_GPU_DUMP_PTXAS="1")

    def compile_one(case):
        def like(shape, dtype) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

        q = like((case.batch, case.q_length, case.heads, case.head_dim), case.dtype)
        k = like((case.batch, case.kv_length, case.kv_heads, case.head_dim), case.dtype)
        rows = like((case.batch, case.heads, case.q_length), jnp.float32)
        carry = Carry(like((*rows.shape, case.head_dim), jnp.float32), rows, rows)
        limit = None if case.limit is None else like((), jnp.int32)

        def step(q, k, v, carry, limit):
            return attention_step(
                q, k, v, carry, is_causal=case.is_causal, scale=case.head_dim**-0.5,
                kv_length=limit, implementation="mosaic",
            )  # fmt: skip

        with (
            tempfile.TemporaryDirectory() as folder,
            jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        ):
            os.environ["MOSAIC_GPU_DUMP_TO"] = folder
            jax.jit(step).lower(q, k, k, carry, limit).compile()
            files = {file.suffix: file.read_text() for file in Path(folder).iterdir()
                     if file.suffix in (".ptx", ".ptxas") or "resources" in file.name}  # fmt: skip
        return files

    return [compile_one(case) for case in cases]


@pytest.fixture(scope="module")
def compiled(aot):
    found = run_in_child(compile_cases, SHIPPED, environment=compile_environment())
    return dict(zip(SHIPPED, found, strict=True))


@pytest.mark.parametrize("case", SHIPPED, ids=lambda case: case.name)
def test_every_shipped_case_is_wgmma_without_spills(compiled, case):
    files = compiled[case]
    products = re.findall(r"wgmma\.mma_async\.\S+\.(f16|bf16)\b", files[".ptx"])
    (spilled,) = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        files[".ptxas"],
    )
    (registers,) = re.findall(r"Used (\d+) registers", files[".ptxas"])
    (shared,) = re.findall(r"smem_scratch_bytes=(\d+)", files[".txt"])
    print(
        f"{case.name}: {len(products)} wgmma, {registers} registers at entry, "
        f"{'/'.join(re.findall(r'setmaxnreg.*?(\d+);', files['.ptx']))} after, "
        f"{shared} B shared, spills {'/'.join(spilled)} B"
    )
    assert set(products) == {{"float16": "f16", "bfloat16": "bf16"}[case.dtype]}
    assert spilled == ("0", "0", "0")
    assert "setmaxnreg" not in files[".ptxas"]  # a warning that it was ignored
    assert int(shared) <= SHARED_BYTES_LIMIT
    tile = TILES[case.head_dim]
    assert 0 <= int(shared) - tile.shared_bytes(case.head_dim) <= 4096  # barriers, reductions


def compile_ring(case, is_causal, order, *, on_progress):
    """Text of a 16-GPU ring of the Mosaic kernel, forward, under shard_map's checks."""
    import jax
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
    args = like(case.heads), like(case.kv_heads), like(case.kv_heads)
    return jax.jit(run).lower(*args).compile().as_text()


@pytest.mark.parametrize(
    ("is_causal", "order"), [(False, "natural"), (True, "zigzag")], ids=["full", "zigzag"]
)
def test_the_ring_calls_it_and_its_cost_is_priced(aot, is_causal, order):
    text = run_in_child(compile_ring, RING, is_causal, order, environment=compile_environment())
    found = inspect_text(text, cluster="h100_2x8")
    assert "mosaic_gpu" in text
    assert found.work.unpriced == ()
    # Whole tiles of 64 by 64 over 16 pieces; in zigzag order half of the sequence is hidden.
    useful = RING.flops * 16 * (0.5 if is_causal else 1)
    assert useful <= found.cost.flops <= 1.25 * useful
