"""Described training steps: laws for any constants, and measured steps as known answers."""

import dataclasses

import numpy as np
import pytest

from parallax.analytic.described.implementation import implementation
from parallax.analytic.described.layer_sizes import layer_sizes
from parallax.analytic.described.layer_work import Bench, layer_work
from parallax.analytic.described.layout import Layout
from parallax.analytic.described.stages import place_stages
from parallax.analytic.described.step_work import step_work
from parallax.analytic.described.training import train_cost
from parallax.analytic.described.training_memory import in_flight, train_memory
from parallax.cost.rates import rates_of
from parallax.meshes.cluster import cluster
from parallax.models.config import ModelConfig
from parallax.models.flops import model_flops
from parallax.models.layer_kinds import LatentAttention, LayerKind

NANOTRON, MEGATRON = implementation("nanotron"), implementation("megatron")
LLAMA = ModelConfig("llama", 16, 2048, 32, 8, 64, 8192, 131_072, mlp="gated", dtype="bfloat16")
MIXTURE = LLAMA.replace(
    name="mixture", num_experts=64, experts_per_token=8, d_ff=1024, shared_experts=1,
    dense_layers=1, dense_d_ff=8192, num_kv_heads=32, latent=LatentAttention(512, 1536, 32, 64),
)  # fmt: skip
NODE = cluster("h100_1x8")


def seconds(layout, config=LLAMA, software=NANOTRON, where=NODE, seq_len=4096):
    return train_cost(config, layout, seq_len, where, software).seconds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tensor": 3, "data": 1}, "heads .32. are a multiple of tensor"),
        ({"expert": 2}, "experts .0. are a multiple of expert"),
        ({"data": 4}, "devices .4. are those of cluster"),
        ({"data": 1, "pipeline": 8, "interleaved": 4}, "layers .16. are at least pipeline"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(change, said):
    layout = Layout(**({"data": 8} | change))
    with pytest.raises(ValueError, match=said):
        seconds(layout)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"data": 0}, "data must be a positive integer"),
        ({"zero": 4}, "zero must be one of"),
        ({"recompute": "all"}, "recompute must be one of"),
        ({"expert": 3, "data": 4}, "expert=3 does not divide"),
        ({"interleaved": 2}, "need pipeline > 1"),
    ],
)
def test_bad_fields_of_a_layout(fields, said):
    with pytest.raises(ValueError, match=said):
        Layout(**fields)


def test_an_unknown_implementation_and_a_share_above_one():
    with pytest.raises(ValueError, match="unknown implementation 'x'. Use one of: nanotron"):
        implementation("x")
    with pytest.raises(ValueError, match="tensor_overlap is a share, got 1.5"):
        dataclasses.replace(NANOTRON, tensor_overlap=1.5)


def test_terms_add_up():
    cost = train_cost(LLAMA, Layout(data=2, tensor=2, pipeline=2, microbatches=8), 4096, NODE,
                      NANOTRON)  # fmt: skip
    assert sum(cost.terms.values()) == pytest.approx(cost.seconds)
    assert all(value >= 0 for value in cost.terms.values())


def test_more_replicas_of_the_same_work_are_never_faster():
    one, four = (
        seconds(Layout(data=8 * n, microbatches=8), where=cluster(f"h100_{n}x8")) for n in (1, 4)
    )
    assert one < four < 1.5 * one


def test_bubble_of_even_stages():
    config = LLAMA.replace(num_layers=64, vocab_size=256)
    plain = dataclasses.replace(MEGATRON, host_layer_s=0.0)
    layout = Layout(pipeline=8, microbatches=1)
    few, many = (
        seconds(dataclasses.replace(layout, microbatches=m), config, plain) for m in (1, 65)
    )
    each = (many - few) / 64
    # The other seven stages fill the pipeline; only the ends' small work and the update differ.
    assert few == pytest.approx(8 * each, rel=0.15)
    chunks = dataclasses.replace(layout, microbatches=65, interleaved=4)
    saved = many - seconds(chunks, config, plain)
    assert saved == pytest.approx(7 * each * 3 / 4, rel=0.15)


def test_recomputed_layers_cost_a_forward_pass():
    layout = Layout(data=8, microbatches=16)
    again = seconds(dataclasses.replace(layout, recompute="layer"))
    assert 1.15 < again / seconds(layout) < 4 / 3


def test_bytes_of_gradient_sums():
    at = Bench(NODE, rates_of("h100"))
    half = dataclasses.replace(NANOTRON, gradient_bytes=2)
    (work,), (less,) = (step_work(LLAMA, Layout(data=8), 4096, at, s) for s in (NANOTRON, half))
    once = LLAMA.num_params * 4 / NODE.gpu.nvlink_bytes_per_s
    assert once < work.reduce_s < 3 * once
    assert work.reduce_s == pytest.approx(2 * less.reduce_s, rel=0.01)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (LLAMA, Layout(pipeline=2, tensor=4)),
        (LLAMA.replace(positions="learned", norm="layernorm", bias=True), Layout(pipeline=8)),
        (LLAMA.replace(tie_embeddings=True), Layout(data=8)),
        (MIXTURE, Layout(data=8, expert=8)),
    ],
    ids=["tensor", "learned", "tied", "experts"],
)
def test_devices_hold_every_parameter_once(config, layout):
    works = step_work(config, layout, 4096, Bench(NODE, rates_of("h100")), MEGATRON)
    sharded = layer_sizes(config, layout, 4096).expert * (config.num_layers - config.dense_layers)
    held = sum(work.params for work in works) + sharded * (layout.expert - 1)
    norms = (2 * config.num_layers + 1) * config.d_model
    whole = (held - norms) * layout.tensor + norms
    assert whole == pytest.approx(config.num_params, rel=1e-9)


def test_memory_of_zero():
    by_zero = [
        train_memory(LLAMA, Layout(data=8, microbatches=4, zero=zero), 4096, MEGATRON)
        for zero in range(4)
    ]
    n = LLAMA.num_params
    assert by_zero[0].optimizer == pytest.approx(12 * n)
    assert by_zero[1].optimizer == pytest.approx(12 * n / 8)
    assert by_zero[1].gradients == pytest.approx(4 * n)
    assert by_zero[2].gradients == pytest.approx(4 * n / 8)
    gathered = 2 * 2 * LLAMA.layer_params
    assert by_zero[3].parameters == pytest.approx(2 * n / 8 + gathered)
    assert len({memory.activations for memory in by_zero}) == 1


@pytest.mark.parametrize(
    ("change", "count"),
    [({}, 10), ({"recompute": "layer"}, 14), ({"sequence_parallel": False}, 4)],
)
def test_collectives_of_tensor_ranks(change, count):
    layout = Layout(**({"tensor": 8} | change))
    at = Bench(NODE, rates_of("h100"))
    assert layer_work(LLAMA, layout, 4096, at, "ring").collectives == count


def test_transfers_of_context_and_expert_ranks_grow_with_the_ranks_that_are_far():
    at = Bench(NODE, rates_of("h100"))
    ring = [layer_work(LLAMA, Layout(context=n), 2**21, at, "ring") for n in (1, 4, 8)]
    # Every rank's keys and values pass all others: (n - 1) / n of the whole sequence's.
    assert ring[0].context_s == 0
    assert ring[2].context_s / ring[1].context_s == pytest.approx(7 / 6, rel=0.05)
    rows = [
        layer_work(MIXTURE, Layout(data=8, expert=n), 4096, at, "ring").expert_s for n in (1, 2, 8)
    ]
    assert 0 == rows[0] < rows[1] < rows[2]


def test_microbatches_in_flight():
    layout = Layout(pipeline=4, microbatches=8)
    assert [in_flight(layout, s) for s in range(4)] == [4, 3, 2, 1]
    assert in_flight(dataclasses.replace(layout, microbatches=2), 0) == 2
    assert in_flight(dataclasses.replace(layout, interleaved=2), 0) == 11 / 2


def test_stages_by_flops_as_nanotron_places_them():
    config = LLAMA.replace(num_kv_heads=32)
    # With attention a layer weighs 0.28 of the unembedding: 19.6 over 8 stages, each filled until
    # it exceeds its share.
    stages = place_stages(config, 8, "by_flops", 4096)
    assert stages.layers == (3, 2, 3, 2, 3, 2, 1, 0)
    assert (stages.head, stages.loss) == (6, 7)
    assert place_stages(config, 3, "even", 4096).layers == (6, 5, 5)


def test_windows_change_attention_alone():
    at = Bench(NODE, rates_of("h100"))
    layout = Layout(data=8)
    windowed = LLAMA.replace(pattern=(LayerKind(1024),))
    whole, less = (step_work(c, layout, 16384, at, NANOTRON)[0] for c in (LLAMA, windowed))
    assert less.attention_s < 0.25 * whole.attention_s
    assert less.products_s == whole.products_s


LAYOUTS = [
    (LLAMA, Layout(data=8, microbatches=4)),
    (LLAMA, Layout(tensor=8, microbatch=4, microbatches=4)),
    (LLAMA, Layout(data=2, tensor=2, pipeline=2, microbatches=16, zero=1)),
    (LLAMA, Layout(data=8, microbatches=2, zero=3, recompute="layer")),
    (LLAMA, Layout(context=8, microbatches=2)),
    (MIXTURE, Layout(data=8, expert=8, microbatches=4, zero=1)),
]


@pytest.mark.parametrize("name", ["nanotron", "megatron", "torchtitan", "llm_foundry"])
@pytest.mark.parametrize(("config", "layout"), LAYOUTS, ids=lambda x: getattr(x, "name", ""))
def test_never_faster_than_the_roofline(config, layout, name):
    flops = 3 * model_flops(config, layout.sequences, 4096, unembedded=4096)
    products = flops / layout.devices / NODE.gpu.bf16_flops
    assert seconds(layout, config, implementation(name)) > products


def test_wires_at_their_peak_are_a_bound():
    ideal = dataclasses.replace(MEGATRON, tensor_overlap=1.0, gradient_overlap=1.0)
    layout = Layout(tensor=8, microbatch=1, microbatches=16)
    rows = 4096 * LLAMA.d_model * LLAMA.item_bytes * 7 / 8
    sent = 16 * LLAMA.num_layers * 10 * rows
    narrow = LLAMA.replace(d_ff=512)
    assert seconds(layout, narrow, ideal) > sent / NODE.gpu.nvlink_bytes_per_s


# Measured: nanotron's table, one row on one node and one over two; SimuMax's with a tensor group.
@pytest.mark.parametrize(
    ("layout", "where", "measured", "error"),
    [
        (Layout(data=8, microbatch=2, microbatches=16), "h100_1x8", 3.26456, 0.08),
        (Layout(tensor=8, microbatches=256), "h100_1x8", 18.97669, 0.08),
        (Layout(data=4, tensor=4, microbatch=4, microbatches=16, zero=1), "h100_2x8", 2.01904,
         0.10),
    ],
)  # fmt: skip
def test_measured_steps_of_nanotron(layout, where, measured, error):
    config = LLAMA.replace(num_kv_heads=32, tie_embeddings=True)
    assert seconds(layout, config, where=cluster(where)) == pytest.approx(measured, rel=error)


def test_a_measured_step_of_megatron():
    config = ModelConfig(
        "llama", 12, 8192, 64, 8, 128, 28672, 128_256, mlp="gated", dtype="bfloat16"
    )
    layout = Layout(data=2, tensor=4, microbatches=4, zero=1)
    where = cluster("b200_1x8")
    assert seconds(layout, config, MEGATRON, where) == pytest.approx(0.4098, rel=0.14)
    memory = train_memory(config, layout, 4096, MEGATRON)
    assert memory.total == pytest.approx(39.07 * 2**30, rel=0.05)
    assert np.isfinite(memory.total)
