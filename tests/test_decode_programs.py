"""Full-size decoding steps compiled with no GPU: bytes, memory, no copy of a cache."""

import pytest

from parallax.commands.lens_tasks import CompileTask, compile_all
from parallax.hlo.execution_trace import Kernel, Loop
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment
from parallax.lenses.predicting import roofline
from parallax.meshes.cluster import cluster
from parallax.papers import paper
from parallax.strategies import (
    cache_tiled,
    expert_parallel,
    hybrid,
    layerwise,
    ring_sequence,
    tensor_pipeline,
    two_level,
)
from parallax.workload import Workload

pytestmark = pytest.mark.slow

CLUSTER = cluster("h100_2x8")
BATCH, LENGTH = 64, 10_000
CASES = {
    "tensor_pipeline": ("ring_sp", tensor_pipeline(8, 2)),
    "ring_sequence": ("ring_sp", ring_sequence(16)),
    "ring of our kernels": ("ring_sp", ring_sequence(16).replace(kernels="mosaic")),
    "two_level": ("two_level", two_level(4, 4)),
    "scores": ("two_level", two_level(4, 4, reduction="scores")),
    "layerwise_tiled": ("cache_layerwise", cache_tiled(layerwise(16), 16, 64, round=4)),
    "expert_parallel": ("cross_node_ep", expert_parallel(16)),
}
MORE = {
    "double_ring": ("ring_sp", ring_sequence(16, nodes=2)),
    "ring x tensor": ("ring_sp", hybrid(ring_sequence(2), tensor_pipeline(8, 1))),
    "layerwise": ("cache_layerwise", layerwise(16)),
    "experts of tensor_pipeline": ("cross_node_ep", tensor_pipeline(8, 2)),
}


def compile_cases(cases):
    """Compilations by name, made in one child process."""
    tasks = [
        CompileTask(paper(name).config, strategy, Workload(BATCH, LENGTH), CLUSTER, "decode")
        for name, strategy in cases.values()
    ]
    found = run_in_child(compile_all, tasks, environment=compile_environment())
    return dict(zip(cases, found, strict=True))


@pytest.fixture(scope="module")
def compiled(aot):
    return compile_cases(CASES)


@pytest.mark.parametrize("name", CASES)
def test_moves_what_its_closed_form_says_and_copies_no_cache(compiled, name):
    check(compiled[name], *CASES[name])


@pytest.mark.exhaustive
def test_more_strategies_do_too(aot):
    for name, c in compile_cases(MORE).items():
        check(c, *MORE[name])


def check(c, model, strategy):
    config = paper(model).config
    assert c.differences == ()
    assert c.memory.fits
    row = 2 * config.num_kv_heads * config.head_dim * config.num_layers * config.item_bytes
    whole = BATCH * LENGTH * row
    # One new slot a device beside the prompts' (for our kernels up to 8), and nothing twice.
    slots = 8 * 16 if strategy.kernels else 32
    assert whole / 16 < c.kv_cache_bytes <= whole / 16 * (1 + slots / LENGTH)
    # The cache is changed in place, read where it lies.
    assert c.memory.alias_bytes >= c.kv_cache_bytes
    weights = c.memory.parameter_bytes
    assert c.memory.temp_bytes < 0.2 * c.kv_cache_bytes + 1.1 * weights


def test_queries_travel_not_keys(compiled):
    """A ring's step sends fewer bytes than one hop of a ring of its cache would."""
    c = compiled["ring_sequence"]
    assert c.wire_bytes < 0.01 * c.kv_cache_bytes
    assert {k for k, _ in c.ledger.by_kind_and_axes()} == {"all-gather", "all-to-all"}


def test_our_kernels_multiply_in_eights(compiled):
    """Their FLOPs are counted, in place of what XLA reads and multiplies without counting."""
    ours, xla = compiled["ring of our kernels"], compiled["ring_sequence"]
    assert any("decode_attention" in note for note in ours.notes)
    assert ours.work.unpriced == ()
    # One query head a key head is 8 columns: 4 FLOPs x 8 for each 4 bytes of the cache.
    assert ours.gemm_flops - xla.gemm_flops == pytest.approx(8 * ours.kv_cache_bytes)


def test_slots_of_whole_heads_move_less_than_scores(compiled):
    spread, summed = compiled["two_level"].wire_bytes, compiled["scores"].wire_bytes
    assert spread < 0.3 * summed


def test_the_roofline_reads_weights_and_cache(compiled):
    for c in compiled.values():
        bound = roofline(c, CLUSTER, "float16")
        read = c.weight_bytes + c.kv_cache_bytes
        assert bound.step_s.value >= read / CLUSTER.gpu.hbm_bytes_per_s
        assert bound.tokens_per_s.value == pytest.approx(BATCH / bound.step_s.value)


def test_a_slab_is_copied_once_a_round(compiled):
    """Microbatches read it where it was put; nothing of a slab's size is written between them."""
    work = compiled["layerwise_tiled"].work
    assert work is not None
    slabs = {"attention": 4 * 8192 * 512 * 2, "mlp": 2 * 8192 * 512 * 2}

    def written(name):
        return [step.written_bytes for step in work.steps[name] if isinstance(step, Kernel)]

    loops = [s for steps in work.steps.values() for s in steps if isinstance(s, Loop)]
    rounds = [loop for loop in loops if loop.count == 4]
    assert len(rounds) == 4  # projections, attention, the output matrix; the MLP
    for loop in rounds:
        assert max(written(loop.body)) < 0.1 * slabs["mlp"]
    copies = {loop.count: max(written(loop.body)) for loop in loops if loop.count in (16, 64)}
    assert copies == {16: slabs["attention"], 64: slabs["mlp"]}
