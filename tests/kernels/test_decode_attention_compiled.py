"""Decoding steps that call the Mosaic kernel, compiled for 16 H100s with no GPU."""

from typing import Any

import pytest

from parallax.commands.inspect import inspect_text
from parallax.hlo.execution_trace import Kernel
from parallax.kernels.decode_attention.cases import SHIPPED
from parallax.kernels.decode_attention.tiles import REGISTERS_OF_TWO, tile_of
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment
from parallax.models.config import ModelConfig
from parallax.strategies import ring_sequence, tensor_pipeline, two_level

MODEL = ModelConfig(
    name="wide", num_layers=4, d_model=1024, num_heads=16, num_kv_heads=16, head_dim=512, d_ff=2048,
    vocab_size=1024, causal=True, dtype="bfloat16",
)  # fmt: skip
# Whole heads over a ring, over tensor ranks in two stages (microbatches), slots over head slices.
STRATEGIES = {
    "ring": ring_sequence(16).replace(kernels="mosaic"),
    "microbatches": tensor_pipeline(8, 2).replace(kernels="mosaic"),
    "spread": two_level(4, 4).replace(kernels="mosaic"),
}
BATCH, LENGTH = 16, 10_000


def compile_steps(strategies, *, on_progress):
    """(text, bytes of the cache, bytes beside arguments and results) of each strategy's step."""
    import jax
    import jax.numpy as jnp

    from parallax.meshes.cluster import cluster
    from parallax.meshes.topology import topology_devices
    from parallax.programs.decoding import Decoder
    from parallax.programs.sharded_model import ShardedTransformer
    from parallax.workload import Workload

    found = []
    for strategy in strategies:
        sharded = ShardedTransformer(MODEL, strategy, Workload(BATCH, LENGTH))
        decoder = Decoder(sharded, new_tokens=4)
        mesh = strategy.mesh.build(topology_devices(cluster("h100_2x8")))
        tokens = jax.ShapeDtypeStruct(
            (BATCH,), jnp.int32, sharding=decoder.token_sharding(mesh)
        )  # fmt: skip
        arguments = sharded.abstract_state(mesh), decoder.abstract_cache(mesh), tokens
        step = jax.jit(decoder.step(mesh), donate_argnums=1).lower(*arguments).compile()
        analysis: Any = step.memory_analysis()
        temporary = analysis.temp_size_in_bytes
        found.append((step.as_text(), decoder.kv_bytes(), temporary))
    return found


@pytest.fixture(scope="module")
def compiled(aot):
    strategies = list(STRATEGIES.values())
    found = run_in_child(compile_steps, strategies, environment=compile_environment())
    return dict(zip(STRATEGIES, found, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_step_calls_it_where_the_cache_lies_and_its_cost_is_priced(compiled, name):
    text, kv_bytes, temporary = compiled[name]
    found = inspect_text(text, cluster="h100_2x8")
    assert "mosaic_gpu" in text
    assert found.work.unpriced == ()
    steps = [step for steps in found.work.steps.values() for step in steps]
    kernels = [step for step in steps if isinstance(step, Kernel) and step.flops]
    # One in the loop over a stage's layers, for a microbatch: a share of the cache, not copied.
    (kernel,) = kernels
    stages = 2 if name == "microbatches" else 1
    a_call = kv_bytes / (MODEL.num_layers / stages) / stages
    assert a_call <= kernel.n_bytes <= 1.1 * a_call
    # One query head a key head: 4 B H C K FLOPs, queries in eights; B H C of 4 K bytes.
    assert kernel.flops == pytest.approx(8 * a_call)
    assert temporary < 0.3 * kv_bytes


def compile_cases(cases, *, on_progress):
    """(registers of a thread, shared memory) of each."""
    from parallax.kernels.decode_attention.cases import inputs, program
    from parallax.lenses.machine_code import compile_kernels

    found = []
    for case in cases:
        (code,) = compile_kernels(program(case, "mosaic"), inputs(case, 0))
        found.append((code.entry_registers, code.shared_bytes))
    return found


def test_two_blocks_of_threads_find_room(aot):
    """What is cut for two blocks on a multiprocessor leaves them registers and shared memory."""
    cuts = {tile_of(case.head_dim, case.heads // case.kv_heads): case for case in SHIPPED}
    largest = {tile.head_dim: case for tile, case in sorted(cuts.items()) if tile.blocks == 2}
    assert set(largest) == {64, 128, 256, 512}
    cases = list(largest.values())
    for registers, shared_bytes in run_in_child(
        compile_cases, cases, environment=compile_environment()
    ):
        assert registers <= REGISTERS_OF_TWO
        assert 2 * (shared_bytes + 1024) <= 228 * 1024
