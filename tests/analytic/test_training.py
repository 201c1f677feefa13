"""The analytical model of a training step, held against compiled programs that were recorded."""

from dataclasses import replace
from typing import Any

import pytest

from parallax.analytic import estimate
from parallax.analytic.ticks import ticks_of
from parallax.analytic.train_costs import TrainCosts
from parallax.analytic.train_memory import elements_of, train_memory
from parallax.bounds import totals
from parallax.cost import rates_of
from parallax.lenses.environment import missing_compiler
from parallax.meshes.cluster import cluster
from parallax.models.config import ModelConfig
from parallax.parallel.layer_parts import Pipeline
from parallax.parallel.schedules import SCHEDULES, make_schedule
from parallax.program import Program
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps import make_step
from parallax.strategies import (
    data_parallel,
    expert_parallel,
    fsdp,
    hsdp,
    hybrid,
    layerwise,
    ring_sequence,
    shard_optimizer,
    tensor_pipeline,
)
from parallax.workload import Workload

MODEL = ModelConfig(
    name="middle", num_layers=8, d_model=2048, num_heads=16, num_kv_heads=8, head_dim=128,
    d_ff=8192, vocab_size=32768, mlp="gated", norm="rmsnorm", dtype="bfloat16",
)  # fmt: skip
EXPERTS = MODEL.replace(
    name="experts", num_layers=4, d_model=1024, num_heads=8, d_ff=2048, num_experts=8
)


def scheduled(name, virtual=1, stages=4):
    layers = Pipeline("stage", schedule=name, virtual_stages=virtual)
    return layerwise(stages).replace(layers=layers)


# (model, strategy, batch, tokens, microbatches, remat) -> GB that its compiled program needs, and
# milliseconds that the cost model gives it: CUDA programs for H100s by jax 0.12, "mosaic" kernels.
RECORD: dict[str, Any] = {
    "data, none": (MODEL, data_parallel(8), 8, 4096, 1, "none", 16.83, 53.5),
    "data, attention": (MODEL, data_parallel(8), 16, 4096, 2, "attention", 14.42, 91.5),
    "data, layer": (MODEL, data_parallel(8), 32, 4096, 4, "layer", 13.13, 181.8),
    "zero-1": (MODEL, shard_optimizer(data_parallel(8), "data"), 32, 4096, 2, "layer", 9.85, 165.6),
    "fsdp": (MODEL, fsdp(8), 32, 4096, 2, "layer", 3.92, 155.0),
    "fsdp, step": (MODEL, fsdp(8, gather="step"), 32, 4096, 4, "attention", 7.97, 158.9),
    "hsdp": (MODEL, hsdp(2, 8), 32, 4096, 1, "layer", 3.63, 83.9),
    "tensor": (MODEL, tensor_pipeline(8, 1), 4, 4096, 1, "none", 11.09, 39.8),
    "tensor, data": (
        MODEL, hybrid(data_parallel(2), tensor_pipeline(4, 1)), 8, 4096, 2, "layer", 3.83, 61.1
    ),
    "gpipe": (MODEL, scheduled("gpipe"), 8, 4096, 8, "layer", 5.30, 127.2),
    "1f1b": (MODEL, scheduled("1f1b"), 8, 4096, 8, "layer", 4.83, 160.3),
    "lockstep": (MODEL, scheduled("1f1b-lockstep"), 8, 4096, 8, "none", 15.54, 187.8),
    "zero bubble": (MODEL, scheduled("zb-h1"), 8, 4096, 8, "none", 11.46, 248.1),
    "experts": (EXPERTS, expert_parallel(8), 16, 4096, 1, "none", 5.06, 46.1),
}  # fmt: skip
CLUSTERS = {4: cluster("h100_1x4"), 8: cluster("h100_1x8"), 16: cluster("h100_2x8")}


def step_of(name):
    model, strategy, batch, tokens, microbatches, remat, *_ = RECORD[name]
    workload = Workload(batch, tokens, microbatches)
    return make_step(model, strategy.replace(kernels="mosaic"), workload, "train", remat)


@pytest.mark.parametrize("name", RECORD)
def test_memory_is_within_15_percent_of_the_program_s(name):
    step = step_of(name)
    found = train_memory(step.sharded, step.program.remat)
    assert found.total == pytest.approx(1e9 * RECORD[name][-2], rel=0.15), found


@pytest.mark.parametrize("name", RECORD)
def test_time_is_within_15_percent_of_the_program_s(name):
    step = step_of(name)
    found = estimate(step, CLUSTERS[step.strategy.mesh.size]).cost
    assert found.seconds == pytest.approx(1e-3 * RECORD[name][-1], rel=0.15), found.terms


@pytest.mark.full
@pytest.mark.parametrize("name", ["fsdp", "1f1b"])
def test_the_record_is_of_these_programs(name):
    if missing := missing_compiler():
        pytest.skip(missing)
    model, strategy, batch, tokens, microbatches, remat, size, ms = RECORD[name]
    program = Program(model, strategy.replace(kernels="mosaic"))
    compiled = program.compile(
        CLUSTERS[strategy.mesh.size], batch=batch, seq_len=tokens, microbatches=microbatches,
        phase="train", remat=remat,
    )  # fmt: skip
    assert compiled.memory.total_bytes == pytest.approx(1e9 * size, rel=0.1)
    found = program.predict(compiled)
    assert found.step_s.value == pytest.approx(1e-3 * ms, rel=0.1)
    assert found.estimate_s is not None
    assert found.estimate_s.value == pytest.approx(found.step_s.value, rel=0.15)


@pytest.mark.parametrize(
    "name", ["zero-1", "fsdp", "fsdp, step", "hsdp", "tensor, data", "experts"]
)
def test_a_step_sends_what_its_closed_form_counts(name):
    step = step_of(name)
    cost = estimate(step, CLUSTERS[step.strategy.mesh.size]).cost
    assert cost.link_bytes == pytest.approx(totals(step.of_shard_map())[0])


def test_a_ring_sends_what_its_closed_form_counts():
    step = make_step(MODEL, ring_sequence(8), Workload(2, 16384), "train", "layer")
    assert estimate(step, CLUSTERS[8]).cost.link_bytes == pytest.approx(
        totals(step.of_shard_map())[0]
    )


def test_flops_are_those_of_three_passes_and_what_is_recomputed():
    """Six FLOPs per parameter and token, and attention's; layers recomputed take two more."""
    step = step_of("data, none")
    once = estimate(step, CLUSTERS[8]).cost.flops
    assert once * 8 == pytest.approx(step.useful_flops(), rel=0.1)
    program = replace(step.program, remat="layer")
    again = estimate(replace(step, program=program), CLUSTERS[8]).cost.flops
    assert 1.15 < again / once < 1.34


def test_state_is_counted_where_it_is_sharded():
    def parts(strategy):
        sharded = ShardedTransformer(MODEL, strategy, Workload(32, 4096, 2))
        return train_memory(sharded, "layer"), elements_of(sharded)

    whole, n = parts(data_parallel(8))
    assert n.state == n.layers + n.ends == n.whole_layers + n.whole_ends
    assert whole.parameters == 4 * (n.layers + n.ends)
    assert whole.optimizer == 8 * n.state
    zero, _ = parts(shard_optimizer(data_parallel(8), "data"))
    assert zero.optimizer * 8 == pytest.approx(whole.optimizer, rel=1e-3)
    assert zero.parameters == whole.parameters
    sharded, m = parts(fsdp(8))
    assert sharded.parameters * 8 == pytest.approx(whole.parameters, rel=1e-3)
    assert m.whole_layers == n.layers
    assert sharded.gathered == pytest.approx(2 * 2 * n.layers / 8)  # two layers in bfloat16
    assert parts(fsdp(8, gather="step"))[0].gathered == pytest.approx(2 * (n.layers + n.ends))


def test_more_recomputed_is_less_kept():
    for name in RECORD:
        step = step_of(name)
        kept = [train_memory(step.sharded, r).activations for r in ("none", "attention", "layer")]
        assert kept == sorted(kept, reverse=True), name


TURNS = [
    (name, *sizes) for name in SCHEDULES for sizes in [(2, 32), (4, 64), (4, 37)]
    if name != "interleaved" or sizes[1] % sizes[0] == 0  # it takes whole turns
]  # fmt: skip


@pytest.mark.parametrize(("name", "stages", "microbatches"), TURNS)
def test_ticks_of_many_microbatches_are_those_of_the_table(name, stages, microbatches):
    virtual = 2 if name == "interleaved" else 1
    ticks = ticks_of(scheduled(name, virtual, stages).layers, stages, microbatches)
    table = make_schedule(name, stages, microbatches, virtual)
    assert ticks is not None
    assert sum(ticks.slowest.values()) == table.ticks
    assert ticks.in_flight == table.peak_in_flight
    assert ticks.bubble == pytest.approx(table.bubble)
    for kind in table.kinds:
        runs = sum(any(a is not None and a.kind == kind for a in row) for row in table.rows)
        assert ticks.runs[kind] == runs


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zero bubble", "zero-1", "experts"])
def test_parts_add_up_to_the_step(name):
    """What a search adds up from shared parts is the estimate of the whole step."""
    step = step_of(name)
    where = CLUSTERS[step.strategy.mesh.size]
    costs = TrainCosts.of(step, where, rates_of("h100"))
    cost, _ = costs.whole(step, costs.parts["update"])
    assert cost.seconds == pytest.approx(estimate(step, where).cost.seconds, rel=1e-3)
