"""Calibration: microbenchmarks run (on a CPU their figures mean nothing), fits recover."""

import dataclasses

import pytest

from parallax.commands.calibrate import calibrate, fit
from parallax.cost.attention import attention_seconds
from parallax.cost.collectives import kind_seconds
from parallax.cost.fitting import predicted_gemm
from parallax.cost.gemm import GemmRates
from parallax.cost.measurements import MeasuredAttention, MeasuredCollective, MeasuredGemm
from parallax.cost.rates import Rates, rates_of
from parallax.lenses import link_benchmarks
from parallax.lenses.benchmarking import SHAPES, Measured, measure_device
from parallax.meshes.gpus import GPUS

GPU = GPUS["h200"]
TRUE = GemmRates(700e12, 3.5e12, 6e-6, 0.8e-6, 2e-6, 3.0, 650e12)


@pytest.fixture(scope="module")
def made():
    """What a GPU of known constants would have measured."""
    rows = tuple(MeasuredGemm("here", "h200", "bfloat16", *shape, seconds=1.0) for shape in SHAPES)
    rows = tuple(
        dataclasses.replace(r, seconds=predicted_gemm(TRUE, r, GPU.sm_count)) for r in rows
    )
    link = dataclasses.replace(rates_of("h200").links["all-gather"], bytes_per_s=2e11)
    sends = tuple(
        MeasuredCollective("here", "h200", 1, 8, "all-gather", size,
                   kind_seconds(link, "all-gather", size, 8))
        for size in (4**i for i in range(6, 15))
    )  # fmt: skip
    sweep = tuple((float(mb), 8e12 if mb <= 30 else 4.2e12) for mb in (4, 16, 30, 64, 256))
    # Calls 1.2 times as fast as shipped, long enough to show little but their FLOPs.
    calls = tuple(
        MeasuredAttention("here", "h200", "cudnn", "bfloat16", 8, 16, 16, 128, 128, 65_536, 65_536,
                          True, False, 65_536, _long_attention() / faster)
        for faster in (1.1, 1.2, 1.3)
    )  # fmt: skip
    return Measured("NVIDIA H200", 8, rows, sends, calls, 4.2e12, sweep, 1.5e-6, 90.0, 690.0)


def _long_attention():
    rates = rates_of("h200")
    return attention_seconds(
        rates.attention, GPU.sm_count, rates.memory_bytes_per_s, batch=8, heads=16, kv_heads=16,
        q_len=65_536, kv_len=65_536, head_dim=128, causal=True,
    )  # fmt: skip


def test_about_forty_products_and_all_different():
    assert 36 <= len(SHAPES) <= 48
    assert len(set(SHAPES)) == len(SHAPES)


def test_a_fit_finds_the_constants_behind_the_times(made):
    found = fit(made, GPU)
    for row in made.gemms:
        modelled = predicted_gemm(found.rates.gemm["f16"], row, GPU.sm_count)
        assert modelled == pytest.approx(row.seconds, rel=0.05)
    rows, median, p90 = found.held_out["matrix products"]
    assert rows > 8
    assert median < 0.02
    assert p90 < 0.05
    assert found.rates.links["all-gather"].bytes_per_s == pytest.approx(2e11, rel=0.1)
    assert found.rates.links["all-to-all"] == rates_of("h200").links["all-to-all"]
    assert found.rates.memory_bytes_per_s == 4.2e12
    assert found.rates.l2_bytes_per_s == 8e12
    assert found.rates.l2_share == pytest.approx(30e6 / GPU.l2_bytes)
    shipped = rates_of("h200").attention
    assert found.rates.attention.flops_per_s(128) == pytest.approx(
        1.2 * shipped.flops_per_s(128), rel=1e-6
    )
    assert found.rates.attention.flops_per_s(64) == shipped.flops_per_s(64)
    assert found.rates.power.idle_w == 90.0
    assert "measured on NVIDIA H200" in found.rates.sources["matrix products"]


def test_a_calibration_is_a_file_of_rates(made, tmp_path):
    rates = fit(made, GPU).rates
    rates.save(tmp_path / "rates.json")
    assert Rates.load(tmp_path / "rates.json") == rates


@pytest.mark.slow
def test_the_benchmarks_run_on_whatever_there_is(monkeypatch):
    monkeypatch.setattr(link_benchmarks, "_TRIES", 50)  # busy cores are noisy
    said = []
    found = measure_device(
        "h100", shapes=((1, 8, 16, 32), (2, 8, 8, 8)), attentions=((1, 2, 2, 16, 8, 8, True),),
        megabytes=(0.1,), link_bytes=(4096,), on_progress=said.append,
    )  # fmt: skip
    assert len(found.gemms) == 2
    assert all(g.seconds > 0 for g in found.gemms)
    assert {c.kind for c in found.collectives} == {
        "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "p2p",
    }  # fmt: skip
    assert found.attention == ()  # no fused attention on a CPU, and none is made up
    assert found.copy_bytes_per_s > 0
    assert said


def test_without_a_known_gpu_it_says_so():
    with pytest.raises(ValueError, match="'cpu'. It needs a GPU that the cost model knows"):
        calibrate(environment={"JAX_PLATFORMS": "cpu"}, on_progress=lambda line: None)
