"""The papers' full-size CUDA programs, compiled with no GPU: memory, ledger, overlap, FLOPs."""

import dataclasses

import pytest

from parallax.bounds import totals
from parallax.commands.lens_tasks import CompileTask, compile_all
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment
from parallax.lenses.predicting import roofline
from parallax.meshes.cluster import cluster
from parallax.papers import paper
from parallax.programs.communication import forward_transfers, full_attention_flops
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import (
    cache_tiled,
    data_parallel,
    ring_sequence,
    tensor_pipeline,
    two_level,
    ulysses,
)

pytestmark = pytest.mark.slow

RING_SP = paper("ring_sp")
CASES = {
    "tensor_pipeline": tensor_pipeline(8, 2),
    "ring_sequence": ring_sequence(16),
    "data_parallel": data_parallel(16),
    "two_level": two_level(4, 4),
    "double_ring": ring_sequence(16, nodes=2),
    "tiled": cache_tiled(tensor_pipeline(8, 2), 2, 4, round=2),
    "our_kernels": ring_sequence(16).replace(kernels="mosaic"),
}
MORE = {
    "ulysses": ulysses(16),
    "sequence_parallel_norms": tensor_pipeline(8, 2, sequence_parallel_norms=True),
}


def task(config, strategy, workload, where=None):
    return CompileTask(config, strategy, workload, where or cluster("h100_2x8"), remat="none")


def compile_cases(cases):
    """Compilations by name, made in one child process."""
    tasks = [task(RING_SP.config, s, RING_SP.workload) for s in cases.values()]
    found = run_in_child(compile_all, tasks, environment=compile_environment())
    return dict(zip(cases, found, strict=True))


@pytest.fixture(scope="module")
def compiled(aot):
    return compile_cases(CASES)


@pytest.mark.parametrize("name", CASES)
def test_fits_and_moves_what_its_closed_form_says(compiled, name):
    check(name, compiled[name])


@pytest.mark.exhaustive
def test_more_strategies_do_too(aot):
    for name, compilation in compile_cases(MORE).items():
        check(name, compilation)
        check_causal(name, compilation)


def check(name, compilation):
    assert compilation.memory.total_bytes <= 0.92 * compilation.memory.capacity_bytes
    assert compilation.differences == ()  # closed form and jaxpr, by kind and mesh axes
    sent, minimum = totals(compilation.transfers)
    assert compilation.wire_bytes == pytest.approx(sent, rel=1e-12)
    assert minimum <= sent
    if name != "data_parallel":
        assert compilation.collectives


def test_ring_sends_fifteen_hops_of_keys_and_values(compiled):
    compilation = compiled["ring_sequence"]
    permutes = [c for c in compilation.collectives if c.kind == "collective-permute"]
    layers_and_microbatches = 4 * 64
    # Keys and values in one transfer: XLA overlaps one at a time.
    assert sum(c.count for c in permutes) == 15 * layers_and_microbatches
    assert {c.dtype for c in permutes} == {"f16"}
    hop = 16 * 625 * 16 * 512 * 2
    assert {c.payload_bytes for c in permutes} == {2 * hop}
    around = next(t for t in compilation.transfers if t.what.startswith("keys"))
    assert around.wire_bytes == around.minimum_bytes == 2 * 15 * layers_and_microbatches * hop


@pytest.mark.parametrize("name", ["ring_sequence", "double_ring", "our_kernels"])
def test_ring_transfers_have_attention_beside_them(compiled, name):
    """Also the swap between nodes."""
    for c in compiled[name].collectives:
        if c.kind == "collective-permute":
            assert c.async_with_compute, c
            assert c.flops_between >= 1e10


def test_a_double_ring_crosses_nodes_once(compiled):
    permutes = [c for c in compiled["double_ring"].collectives if c.kind == "collective-permute"]
    hops = {axis: sum(c.count for c in permutes if c.axes == (axis,)) for axis in ("node", "seq")}
    layers_and_microbatches = 4 * 64
    assert hops == {
        "node": 1 * layers_and_microbatches, "seq": 2 * 7 * layers_and_microbatches,
    }  # fmt: skip


def test_two_levels_exchange_inside_a_node(compiled):
    """ "auto" takes four all-to-alls of a device's slices; all-reduces are the contractions'."""
    exchanges = [c for c in compiled["two_level"].collectives if c.kind == "all-to-all"]
    assert {c.axes for c in exchanges} == {("head_slice",)}
    assert {c.payload_bytes for c in exchanges} == {16 * 10_000 * 4 * 128 * 2}
    assert sum(c.count for c in exchanges) == 4 * 4 * 64


def test_a_causal_mask_costs_about_half_and_the_same_everywhere(compiled):
    for name in CASES:
        check_causal(name, compiled[name])


def check_causal(name, compilation):
    ratio = compilation.attention_flops / full_attention_flops(RING_SP.config, RING_SP.workload, 16)
    # Pipelines repeat a microbatch's work in their bubble.
    bubble = 65 / 64 if "pipeline" in name or "norms" in name else 1
    bubble = 33 / 32 if name == "tiled" else bubble
    assert 0.5 <= ratio / bubble <= 0.55, (name, ratio)
    # One program without data-dependent branches: every device executes the same FLOPs.
    assert not any("depends on data" in note for note in compilation.notes)


def test_our_kernels_are_named_and_counted(compiled):
    ours, xla = compiled["our_kernels"], compiled["ring_sequence"]
    (note,) = (note for note in ours.notes if "written by hand" in note)
    assert "ring_attention_forward" in note
    assert not any("written by hand" in note for note in xla.notes)
    assert ours.work.unpriced == ()
    # The same products, but for the edges of tiles.
    assert ours.gemm_flops == pytest.approx(xla.gemm_flops, rel=0.05)
    assert ours.gemm_flops - ours.attention_flops == pytest.approx(
        xla.gemm_flops - xla.attention_flops, rel=1e-9
    )


def test_flops_are_the_models(compiled):
    config, tokens = RING_SP.config, RING_SP.workload.tokens
    matrices = 2 * tokens * config.num_layers * (4 * 8192**2 + 2 * 8192 * 32768) / 16
    found = compiled["data_parallel"]
    head = 2 * 1024 * 8192 * 32000 / 16
    assert found.gemm_flops - found.attention_flops == pytest.approx(matrices + head, rel=1e-9)


def test_rooflines_say_what_the_network_allows(compiled):
    where = cluster("h100_2x8")
    ring = roofline(compiled["ring_sequence"], where, "float16")
    assert max(ring.terms_s, key=lambda n: ring.terms_s[n]) == "network"
    assert ring.tokens_per_s.value == pytest.approx(0.41e6, rel=0.02)
    one_domain = dataclasses.replace(cluster("h100_nvl16"))
    assert roofline(compiled["ring_sequence"], one_domain, "float16").tokens_per_s.value > 1e6


def test_closed_forms_by_hand():
    b_l_d = 16 * 10_000 * 8192 * 2
    strategy = tensor_pipeline(8, 2)
    found = {t.what: t for t in forward_transfers(RING_SP.config, strategy, RING_SP.workload)}
    assert found["sum of MLP"].count == 65 * 2
    assert found["sum of MLP"].wire_bytes == 65 * 2 * 2 * 7 / 8 * b_l_d
    assert found["sum of MLP"].minimum_bytes == 64 * 2 * 2 * 7 / 8 * b_l_d
    assert found["stage handoff"].wire_bytes == 65 * b_l_d / 8  # a tensor rank's share
    assert forward_transfers(RING_SP.config, data_parallel(16), RING_SP.workload) == ()


def test_packed_sequences_send_their_segment_ids(aot):
    workload = dataclasses.replace(RING_SP.small_workload, packed=True)
    config = RING_SP.config.small()
    (found,) = run_in_child(
        compile_all, [task(config, ring_sequence(16), workload)],
        environment=compile_environment(),
    )  # fmt: skip
    assert found.differences == ()
    assert any("s32" in c.dtype for c in found.collectives)


@pytest.mark.parametrize("parameters_fit", [True, False])
def test_what_does_not_fit_is_said_with_its_figure(aot, parameters_fit):
    """Little memory: the fit is judged there, the ledger read where nothing is in the way."""
    where = cluster("h100_2x8")
    config = RING_SP.config.small().replace(name="wide", d_model=4096, d_ff=16384, num_layers=8,
                                            head_dim=256, num_heads=16)  # fmt: skip
    strategy = data_parallel(16)
    whole = dataclasses.replace(RING_SP.small_workload, microbatches=1)
    weights = ShardedTransformer(config, strategy, whole).weight_bytes()
    room = int((weights + 1e7) / where.usable_fraction) if parameters_fit else 10**9
    little = dataclasses.replace(where, gpu=dataclasses.replace(where.gpu, memory_bytes=room))
    lines: list[str] = []
    (found,) = run_in_child(
        compile_all, [task(config, strategy, whole, little)],
        environment=compile_environment(), on_progress=lines.append,
    )  # fmt: skip
    assert not found.memory.fits
    assert found.memory.total_bytes > weights
    said = "this one does not fit" if parameters_fit else "the parameters alone do not fit"
    assert any(said in note for note in found.notes)
    assert any("compiling again" in line for line in lines) == parameters_fit
    assert found.differences == ()
