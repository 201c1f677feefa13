"""What a report says of a training step by closed form, and what would make a step fit."""

from dataclasses import replace

import pytest

import parallax as px
from parallax.analytic.train_memory import train_memory
from parallax.meshes.cluster import cluster
from parallax.programs.sharded_model import ShardedTransformer
from parallax.search.fitting import fitting_knob, training_facts
from parallax.strategies import TrainingOptions
from parallax.workload import Workload

H100 = cluster("h100_2x8")
CONFIG = px.ModelConfig(
    name="8b", num_layers=32, d_model=4096, num_heads=32, num_kv_heads=8, head_dim=128,
    d_ff=14336, vocab_size=128256, mlp="gated", norm="rmsnorm", positions="rope",
    dtype="bfloat16",
)  # fmt: skip
WORKLOAD = Workload(64, 8192, 1)
REPLICATED = px.strategies.data_parallel(16)
PIPELINE = px.strategies.tensor_pipeline(8, 2)


def gigabytes(strategy, workload=WORKLOAD):
    return train_memory(ShardedTransformer(CONFIG, strategy, workload), "layer").total / 1e9


def test_facts_are_those_of_the_strategy():
    facts = training_facts(CONFIG, px.strategies.hsdp(2, 8), WORKLOAD, "attention")
    assert (facts.weights, facts.gather, facts.optimizer) == (("data",), "layer", ("data",))
    assert (facts.remat, facts.microbatches, facts.schedule) == ("attention", 1, None)
    assert facts.parameter_bytes == pytest.approx(4 * CONFIG.num_params / 8, rel=1e-3)
    assert facts.optimizer_bytes == 2 * facts.parameter_bytes
    zero = training_facts(
        CONFIG, px.strategies.shard_optimizer(REPLICATED, "data"), WORKLOAD, "layer"
    )
    assert (zero.weights, zero.optimizer) == ((), ("data",))
    assert zero.optimizer_bytes == pytest.approx(2 * zero.parameter_bytes / 16, rel=1e-2)


def test_a_pipeline_has_its_schedule():
    facts = training_facts(CONFIG, PIPELINE, replace(WORKLOAD, microbatches=8), "layer")
    assert facts.schedule is not None
    assert (facts.schedule.name, facts.schedule.stages) == ("gpipe", 2)
    assert facts.schedule.peak_in_flight == 8


def test_each_change_that_is_enough_is_named_with_its_memory():
    said = fitting_knob(CONFIG, px.strategies.fsdp(16), WORKLOAD, H100, remat="none")
    least = gigabytes(px.strategies.fsdp(16))
    assert said.startswith(f"by closed form it fits with --remat=layer ({least:.3g} GB)")


def test_the_fewest_microbatches_that_fit_are_named():
    strategy = TrainingOptions(schedule="1f1b").apply(PIPELINE)
    said = fitting_knob(CONFIG, strategy, WORKLOAD, H100, remat="layer")
    sizes = {m: gigabytes(strategy, replace(WORKLOAD, microbatches=m)) for m in (2, 4, 8, 16)}
    fewest = next(m for m, size in sizes.items() if size <= H100.usable_bytes / 1e9)
    assert f"--microbatches={fewest} ({sizes[fewest]:.3g} GB)" in said
    assert sizes[2] > sizes[fewest]


def test_gpipe_needs_another_schedule_too():
    said = fitting_knob(CONFIG, PIPELINE, WORKLOAD, H100, remat="layer")
    assert "it fits with --microbatches=" in said
    assert "--schedule=1f1b" in said


def test_several_changes_are_named_where_one_is_not_enough():
    said = fitting_knob(CONFIG, REPLICATED, WORKLOAD, H100, remat="none")
    sharded = px.strategies.shard_weights(REPLICATED, "data")
    assert "it fits with --remat=layer --shard_weights=auto" in said
    assert f"({gigabytes(sharded):.3g} GB)" in said


def test_what_helps_most_is_named_where_nothing_fits():
    one = cluster("h100_1x1")
    said = fitting_knob(
        CONFIG, px.strategies.data_parallel(1), Workload(1, 8192), one, remat="none"
    )
    assert said.startswith("by closed form it still does not fit with --remat=layer (")
    said = fitting_knob(
        CONFIG, px.strategies.data_parallel(1), Workload(1, 8192), one, remat="layer"
    )
    assert said == "by closed form no change to the strategy needs less memory"


def test_a_prefill_and_a_decoding_step_take_fewer_sequences_at_a_time():
    one = cluster("h100_1x1")
    strategy, big = px.strategies.data_parallel(1), Workload(64, 32768, 1)
    said = fitting_knob(CONFIG, strategy, big, one, "prefill")
    assert "it fits with --microbatches=" in said
    assert "remat" not in said
    # Weights and the keys and values of every token, two bytes each.
    weights = 2 * CONFIG.num_params
    a_sequence = 2 * 2 * CONFIG.num_layers * CONFIG.num_kv_heads * CONFIG.head_dim * (32768 + 1)
    batch = next(b for b in (32, 16, 8, 4, 2, 1) if weights + b * a_sequence <= one.usable_bytes)
    size = (weights + batch * a_sequence) / 1e9
    said = fitting_knob(CONFIG, strategy, big, one, "decode")
    assert said == f"by closed form it fits with --batch={batch} ({size:.3g} GB)"
