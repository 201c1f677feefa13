"""A full-size decoding step of cache-tiled layers with the MLP's kernel, compiled for 16 H100s."""

from dataclasses import replace

import pytest

from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment
from parallax.papers import paper
from parallax.strategies import cache_tiled, data_parallel

MICROBATCHES = 8
WHOLE = cache_tiled(data_parallel(16), 1, 1)
CASES = {
    "ordinary": (None, data_parallel(16)),
    "kernel": (None, WHOLE.replace(kernels="mosaic")),
    "int8 kernel": (("int8", "int8"), WHOLE.replace(kernels="mosaic")),
}
PAPER = paper("cache_layerwise")


def compile_steps(cases, *, on_progress):
    """Of each case, what compiled and what a cost model says."""
    import jax
    import jax.numpy as jnp

    from parallax.cost import estimate_cost, rates_of
    from parallax.lenses.compiling import compile_for
    from parallax.meshes.cluster import cluster
    from parallax.programs.communication import decode_transfers
    from parallax.programs.decoding import Decoder
    from parallax.programs.sharded_model import ShardedTransformer

    where, workload = cluster("h100_2x8"), replace(PAPER.workload, microbatches=1)

    def compile_one(compression, strategy):
        config = PAPER.config.replace(compression=compression)
        decoder = Decoder(
            ShardedTransformer(config, strategy, workload),
            new_tokens=1, microbatches=MICROBATCHES,
        )  # fmt: skip

        def arguments(mesh):
            tokens = jax.ShapeDtypeStruct(
                (workload.batch,), jnp.int32, sharding=decoder.token_sharding(mesh)
            )
            return decoder.sharded.abstract_state(mesh), decoder.abstract_cache(mesh), tokens

        found = compile_for(
            where, decoder.step, arguments, strategy.mesh, workload=workload, phase="decode",
            donate=(1,), transfers=decode_transfers(decoder),
            compiler_options=strategy.compiler_options,
        )  # fmt: skip
        assert found.work is not None, found.unpriced
        cost = estimate_cost(found.work, where, rates_of(where.gpu.name), loops_reuse_cache=True)
        return found, cost, decoder.kv_bytes(), decoder.weight_bytes()

    return [compile_one(*case) for case in cases]


@pytest.fixture(scope="module")
def compiled(aot):
    found = run_in_child(compile_steps, list(CASES.values()), environment=compile_environment())
    return dict(zip(CASES, found, strict=True))


@pytest.mark.full
@pytest.mark.parametrize(("name", "item_bytes"), [("kernel", 2), ("int8 kernel", 1)])
def test_the_step_reads_each_weight_of_the_mlp_once(compiled, name, item_bytes):
    found, cost, kv_bytes, weight_bytes = compiled[name]
    assert any("cache_tiled_mlp_down, cache_tiled_mlp_up" in note for note in found.notes)
    assert found.unpriced == ""
    assert found.differences == ()
    config = PAPER.config
    mlp = 2 * config.num_layers * config.d_model * config.d_ff
    tokens = PAPER.workload.batch // 16
    assert cost.flops >= 2.0 * tokens * mlp
    # Attention is read once a microbatch, in 16-bit values; integers also to make these.
    attention = (weight_bytes - mlp * item_bytes) * MICROBATCHES * 2 / item_bytes
    least = kv_bytes + mlp * item_bytes + attention
    assert cost.memory_bytes == pytest.approx(least, rel=0.06)
    # No layer is cut out of its stack.
    assert found.memory.temp_bytes < mlp * item_bytes / config.num_layers


@pytest.mark.full
def test_the_step_is_faster_by_the_cost_model(compiled):
    """Modelled, not measured. By less than where the ordinary step still copied its weights."""
    times = {name: cost.seconds for name, (_, cost, _, _) in compiled.items()}
    print({name: f"{1e3 * seconds:.1f} ms" for name, seconds in times.items()})
    assert times["int8 kernel"] < times["kernel"] < 0.85 * times["ordinary"]
