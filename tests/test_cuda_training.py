"""Full-size training steps and programs with experts, compiled for 16 H100 with no GPU."""

import pytest

from parallax.lenses.child import run_in_child
from parallax.lenses.compiling_steps import compile_program
from parallax.lenses.environment import compile_environment
from parallax.meshes.cluster import cluster
from parallax.papers import paper
from parallax.programs.communication import expected_routing
from parallax.strategies import TrainingOptions, build, expert_parallel
from parallax.workload import Workload

pytestmark = pytest.mark.exhaustive

SMALL_MOE = paper("cross_node_ep").config.small(max_seq_len=160)

# paper's model, strategy, phase, remat, batch, microbatches
PROGRAMS = {
    "two_level trains": ("two_level", "two_level", "train", "layer", 1024, 128),
    "experts": ("cross_node_ep", "expert_parallel", "prefill", "none", 1024, 64),
    "experts by node": ("cross_node_ep", "expert_parallel_nodes", "prefill", "none", 1024, 64),
    "experts over tensor": ("cross_node_ep", "tensor_pipeline", "prefill", "none", 1024, 64),
    "stages": ("cache_layerwise", "layerwise", "prefill", "none", 1024, 64),
}  # fmt: skip
MORE = {
    "TP x PP trains": ("two_level", "tensor_pipeline", "train", "layer", 1024, 128),
    "whole experts over tensor": (
        "cross_node_ep", "tensor_pipeline_colocated", "prefill", "none", 1024, 64,
    ),
    "a ring trains": ("ring_sp", "ring_sequence", "train", "layer", 1024, 128),
    "stages train a quarter of the batch": (
        "cache_layerwise", "layerwise", "train", "layer", 256, 256,
    ),
}  # fmt: skip


def in_turn(strategy):
    """With 1F1B where there are stages: GPipe keeps something of every microbatch."""
    return TrainingOptions(schedule="1f1b").apply(strategy)


def compiled_all(programs, *, on_progress):
    """In a child: Compilations by name."""
    found = {}
    for name, (of, strategy, phase, remat, batch, microbatches) in programs.items():
        on_progress(name)
        found[name] = compile_program(
            paper(of).config, in_turn(build(strategy)), Workload(batch, 10_000, microbatches),
            cluster("h100_2x8"), phase, remat, on_progress=on_progress,
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def compiled(aot):
    return run_in_child(compiled_all, PROGRAMS, environment=compile_environment())


def check(found):
    assert found.memory.fits, found.memory.total_bytes
    assert found.differences == ()


@pytest.mark.parametrize("name", PROGRAMS)
def test_fits_and_moves_what_its_closed_form_says(compiled, name):
    check(compiled[name])


def test_more_programs_do_too(aot):
    found = run_in_child(compiled_all, MORE, environment=compile_environment())
    assert found.keys() == MORE.keys()
    for compilation in found.values():
        check(compilation)


def test_a_step_costs_three_forward_passes_and_what_it_recomputes(compiled):
    """Matrix products outside attention: forward 1, backward 2, recomputed 1 with remat="layer"."""
    step = compiled["two_level trains"]
    config, tokens = paper("two_level").config, 1024 * 10_000
    forward = 2 * tokens * config.num_layers * (4 * 8192**2 + 2 * 8192 * 32768) / 16
    head = 2 * tokens * 8192 * 32_000 / 16
    others = step.gemm_flops - step.attention_flops
    # Of a layer recomputed on its own, the last product is not needed.
    unneeded = 2 * tokens * config.num_layers * 8192 * 32768 / 16
    assert others == pytest.approx(4 * forward + 3 * head - unneeded, rel=1e-3)


def test_experts_work_while_rows_travel(compiled):
    """Of the exchanges of rows, all but the first and last of a pass have experts beside them."""
    exchanges = [c for c in compiled["experts"].collectives if c.kind == "all-to-all"]
    rows = [c for c in exchanges if c.dtype == "f16"]
    beside = [c for c in rows if c.async_with_compute and c.flops_between > 1e12]
    assert sum(c.count for c in beside) >= 4 * 64 * 4  # chunks of each layer and microbatch
    total = sum(c.total_bytes for c in rows)
    assert sum(c.total_bytes for c in beside) >= 0.7 * total


def test_ragged_rows_between_nodes_are_the_deduplicated_minimum(compiled):
    found = compiled["experts by node"]
    between = [c for c in found.collectives if c.ragged and c.axes == ("node",)]
    tokens, row = 64 * 10_000, 8192 * 2
    # Two distinct experts of sixteen: the other node has one of them unless both are here.
    share = 1 - (8 * 7) / (16 * 15)
    minimum = 4 * tokens * share * row * 2 / 2  # there and back; half of them are another node's
    assert sum(c.total_bytes for c in between) <= 1.05 * 2 * minimum
    assert any(c.async_with_compute for c in between)


def test_flops_of_experts_follow_the_rows(compiled):
    tokens = 1024 * 10_000 / 16
    experts = 4 * tokens * 2 * 2 * 2 * 8192 * 32768  # layers, choices, matrices
    dense = 2 * tokens * 4 * (4 * 8192**2 + 8192 * 16) + 2 * 64 * 8192 * 32_000
    found = compiled["experts"]
    executed = found.gemm_flops - found.attention_flops - dense
    assert experts <= executed <= 1.1 * experts
    # The same under the baseline, over its bubble.
    base = compiled["experts over tensor"]
    assert base.gemm_flops == pytest.approx(found.gemm_flops * 65 / 64, rel=0.02)


def test_handoffs_of_whole_layers_have_layers_beside_them(compiled):
    found = compiled["stages"]
    (handoff,) = [c for c in found.collectives if c.kind == "collective-permute"]
    assert handoff.async_with_compute
    assert handoff.flops_between > 5e13  # products of a whole microbatch, not a fusion
    assert handoff.count == 64 + 2 * 15
    assert found.evenness.bubble == 30 / 64


def small_experts(*, on_progress):
    """In a child: training steps of the small model, experts reached and colocated."""
    where, load = cluster("h100_2x8"), Workload(16, 80, 1)
    strategies = [
        expert_parallel(16, tile=16, exchange="ragged"), build("tensor_pipeline_colocated"),
    ]  # fmt: skip
    return [
        compile_program(SMALL_MOE, s, load, where, "train", "layer", on_progress=on_progress)
        for s in strategies
    ]


def test_training_with_experts_moves_what_its_closed_form_says(aot):
    for found in run_in_child(small_experts, environment=compile_environment()):
        assert found.differences == ()


def test_routing_is_derived_only_where_there_are_experts():
    load = Workload(1024, 10_000, 64)
    assert expected_routing(paper("ring_sp").config, build("ring_sequence"), load) is None
    routing = expected_routing(paper("cross_node_ep").config, build("expert_parallel"), load)
    assert routing is not None
    assert routing.trips == {"expert_tiles": 10}  # 5000 rows of a chunk in tiles of 512
    assert routing.sent == {}
    assert routing.utilisation == 5000 / (10 * 512)
    assert "tiles of rows, of which 97.7 % are its tokens" in routing.note
    assert "dense exchange" in routing.note
