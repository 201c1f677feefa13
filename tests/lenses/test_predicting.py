"""The roofline by hand: its largest term bounds the step; what products do not cover is exposed."""

import dataclasses
import math

import pytest

from parallax.hlo.execution_trace import ExecutionTrace, Gemm, Kernel, Send
from parallax.hlo.ledger import Collective
from parallax.lenses.predicting import predict, roofline
from parallax.meshes.cluster import cluster
from parallax.results.lens_results import Compilation, Memory
from parallax.workload import Workload

WHERE = cluster("h100_nvl16")
RATE, LINK = WHERE.gpu.peak_flops("float16"), WHERE.gpu.nvlink_bytes_per_s
PAIRS = tuple((i, (i + 1) % 16) for i in range(16))


def permute(seconds, covered_seconds, count):
    """A ring hop that takes so long on the link, beside products that take so long."""
    size = int(seconds * LINK)
    return Collective(
        "collective-permute", ("seq",), 16, size, size, count, "f16", "", is_async=True,
        gemms_between=1, flops_between=covered_seconds * RATE, pairs=PAIRS,
    )  # fmt: skip


def compilation(*collectives, flops, weights=0.0):
    memory = Memory(0, 0, 0, 0, 0, 1, 0.92)
    return Compilation(
        "h100_nvl16", "seq=16", Workload(4, 100), memory, collectives, (), True, (), flops, 0.0,
        weights, 0.0, "", (), 0.0,
    )  # fmt: skip


def test_the_largest_term_bounds_the_step():
    found = roofline(compilation(permute(2e-3, 0, 3), flops=5e-3 * RATE), WHERE, "float16")
    assert found.terms_s["compute"] == pytest.approx(5e-3)
    assert found.terms_s["NVLink"] == pytest.approx(6e-3, rel=1e-6)
    assert found.terms_s["network"] == 0
    assert found.step_s.value == found.terms_s["NVLink"]
    assert found.tokens_per_s.value == pytest.approx(400 / 6e-3, rel=1e-6)
    heavy = compilation(flops=1.0, weights=WHERE.gpu.hbm_bytes_per_s)
    assert roofline(heavy, WHERE, "float16").step_s.value == pytest.approx(1.0)


def priced(**changes):
    """Two products and a send between nodes that nothing covers."""
    gemm = Gemm(1, 4096, 4096, 4096, "f16")
    kernel = Kernel("p", (("x", 1e8),), 1e8, (gemm,))
    send = Send("s", permute(1e-3, 0, 1))
    steps = {"main": (kernel, kernel, send)}
    base = compilation(permute(1e-3, 0, 1), flops=2 * gemm.flops)
    return dataclasses.replace(base, **({"work": ExecutionTrace("main", steps, 16)} | changes))


def test_a_program_that_does_nothing_takes_no_time():
    work = ExecutionTrace("main", {"main": ()}, 16)
    found = predict(dataclasses.replace(compilation(flops=0.0), work=work), WHERE, "float16")
    assert found.step_s.value == found.step_s.high == 0
    assert found.tokens_per_s.value == math.inf


def test_a_prediction_adds_up_and_carries_its_bar():
    found = predict(priced(), WHERE, "float16", useful_flops=1e12)
    assert sum(found.terms_s.values()) == pytest.approx(found.step_s.value)
    assert found.step_s.low is not None
    assert found.step_s.high is not None
    assert found.mfu is not None
    assert found.step_s.low < found.step_s.value < found.step_s.high
    assert found.exposed_s.value > 1e-3
    assert found.tokens_per_s.value == pytest.approx(400 / found.step_s.value)
    assert found.exposed_per_token_s.value == pytest.approx(found.exposed_s.value / 400)
    peak = 16 * WHERE.gpu.bf16_flops
    assert found.mfu.value == pytest.approx(1e12 / (found.step_s.value * peak))
    assert found.bound.step_s.value <= found.step_s.low
    assert found.energy_j.value > 16 * 50 * found.step_s.value  # idle alone is more than 50 W
    assert found.energy_j.value <= 16 * WHERE.gpu.tdp_w * found.step_s.value


def test_time_between_nodes_is_called_unvalidated():
    assert predict(priced(), WHERE, "float16").unvalidated == ""
    two_nodes = cluster("h100_2x8")
    assert predict(priced(), two_nodes, "float16").unvalidated == "time between nodes"


def test_it_never_beats_the_roofline():
    """A bound above what the clock says (weights nobody priced) is the answer."""
    found = predict(priced(weight_bytes=WHERE.gpu.hbm_bytes_per_s), WHERE, "float16")
    assert found.step_s.value >= found.bound.step_s.value == pytest.approx(1.0)
    assert sum(found.terms_s.values()) == pytest.approx(found.step_s.value)
    assert found.terms_s["up to the roofline"] > 0.9


def test_a_working_set_that_a_cache_holds_is_bound_by_the_cache():
    small = priced(weight_bytes=WHERE.gpu.l2_bytes / 2)
    assert "weights from L2" in roofline(small, WHERE, "float16").terms_s
    large = priced(weight_bytes=2.0 * WHERE.gpu.l2_bytes)
    assert "weights from HBM" in roofline(large, WHERE, "float16").terms_s


def test_what_cannot_be_priced_is_refused_with_its_reason():
    with pytest.raises(ValueError, match="cannot be priced: a loop of unknown trip count"):
        predict(priced(work=None, unpriced="a loop of unknown trip count"), WHERE, "float16")


def test_a_loop_of_unknown_trip_count_has_a_lower_bound_and_no_upper_end():
    work = priced().work
    assert work is not None
    work = dataclasses.replace(work, open_loops=("generate (line 12)",))
    found = predict(priced(work=work), WHERE, "float16")
    plain = predict(priced(), WHERE, "float16")
    assert (found.step_s.value, found.step_s.low) == (plain.step_s.value, plain.step_s.low)
    assert found.step_s.high is None
    assert found.tokens_per_s.low is None
    assert "lower bound" in found.step_s.note
    (note,) = found.notes
    assert "trips={'generate': iterations}" in note


def test_products_of_8_bits_have_their_own_peak_in_the_roofline():
    kernel = Kernel("k", (), 0.0, (Gemm(1, 4096, 4096, 4096, "f8"),))
    flops = kernel.gemms[0].flops
    made = priced(work=ExecutionTrace("e", {"e": (kernel,)}, 16), gemm_flops=2 * flops)
    compute = roofline(made, WHERE, "bfloat16").terms_s["compute"]
    assert compute == pytest.approx(flops / WHERE.gpu.fp8_flops + flops / WHERE.gpu.bf16_flops)
