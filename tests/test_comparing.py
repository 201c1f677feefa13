"""compare: what it resolves before any work starts, and what it says when a lens cannot run."""

import dataclasses
from pathlib import Path

import pytest

import parallax as px
from parallax import comparing
from parallax.comparing import compare
from parallax.lenses.text import DEFAULT_TEXT
from parallax.results import Difference

pytestmark = pytest.mark.slow

LLAMA = Path(__file__).parent / "models" / "huggingface" / "golden" / "llama"


@pytest.fixture
def plan(monkeypatch):
    """What `compare` would run, without running it."""
    caught = []

    class StopHereError(Exception):
        pass

    def stop(*_, **__):
        raise StopHereError

    real = comparing.make_plan

    def keep(request):
        caught.append(real(request))
        return caught[0]

    monkeypatch.setattr(comparing, "make_plan", keep)
    monkeypatch.setattr(comparing, "ThreadPoolExecutor", stop)

    def run(*args, **kwargs):
        caught.clear()
        with pytest.raises(StopHereError):
            compare(*args, **kwargs)
        return caught[0]

    return run


def test_a_paper_sets_everything(plan):
    found = plan("ring_sp")
    assert [s.name for s, _ in found.cases] == [
        "tensor_pipeline", "ring_sequence", "double_ring", "data_parallel",
    ]  # fmt: skip
    assert {(w.batch, w.seq_len, w.microbatches) for _, w in found.cases} == {(1024, 10_000, 64)}
    assert found.lenses == ("verify", "compile", "predict")
    assert found.cluster.name == "h100_2x8"
    assert found.request["cluster"] == "h100_2x8"


def test_arguments_override_the_paper(plan):
    found = plan(
        "ring_sp", strategies=["ring_sequence"], mesh="seq=8", cluster="h200_1x8", batch=32,
        seq_len=4096, dtype="bfloat16", packed=True, lenses=["predict", "verify"],
    )  # fmt: skip
    ((strategy, workload),) = found.cases
    assert strategy == px.strategies.ring_sequence(8)
    assert (workload.batch, workload.seq_len, workload.packed) == (32, 4096, True)
    assert workload.microbatches == 32  # 64 do not divide 32 sequences; the report prints it
    assert found.config.dtype == found.small_config.dtype == "bfloat16"
    assert found.lenses == ("verify", "predict")


def test_formats_hold_for_all_strategies_and_run_again(plan):
    found = plan("compressed_layerwise", compression="int8,int4", budget="l2")
    assert found.config.compression == ("int8", "int4")
    assert found.small_config.compression == ("int8", "int4/8")  # a small head has 8 inputs
    assert found.request["compression"] == "int8,int4"
    assert found.request["budget"] == "l2"
    assert plan(**found.request).config == found.config
    assert plan("compressed_layerwise").config.compression is None
    assert plan("ring_sp", compression="none").config.compression is None


def test_microbatches_divide_what_a_device_has(plan):
    found = {s.name: w.microbatches for s, w in plan("ring_sp", batch=48).cases}
    assert found == {
        "tensor_pipeline": 48, "ring_sequence": 48, "double_ring": 48, "data_parallel": 3,
    }  # fmt: skip
    found = {s.name: w.microbatches for s, w in plan("ring_sp", batch=80).cases}
    assert found == {
        "tensor_pipeline": 40, "ring_sequence": 40, "double_ring": 40, "data_parallel": 5,
    }  # fmt: skip
    own = px.strategies.tensor_pipeline(8, 2, microbatches=8)
    assert plan("ring_sp", strategies=[own]).cases[0][1].microbatches == 8


def test_a_strategy_file_and_ones_own_model(plan, tmp_path):
    path = tmp_path / "mine.json"
    px.strategies.ring_sequence(16, order="natural").replace(name="mine").save(path)
    config = px.PAPERS["ring_sp"].config.small().replace(name="own", positions="learned")
    found = plan(model=config, strategies=[str(path)], batch=4, seq_len=64)
    assert found.cases[0][0].name == "mine"
    assert found.paper is None
    assert found.request["model"] == "own"


def test_verify_runs_at_sizes_that_the_devices_divide(plan):
    found = plan("ring_sp", cluster="h100_4x8", seq_len=10_240, strategies=["ring_sequence"])
    ((strategy, workload),) = found.small_cases
    assert strategy.mesh.size == 32
    assert (workload.batch, workload.seq_len) == (16, 96)
    wide = plan("ring_sp", cluster="h100_4x8", strategies=["data_parallel"]).small_cases[0][1]
    assert (wide.batch, wide.seq_len, wide.microbatches) == (32, 80, 1)


def test_small_compiles_what_verify_runs(plan):
    found = plan("ring_sp", small=True)
    assert found.config == found.small_config
    assert found.cases == found.small_cases


def test_without_the_compiler_the_rest_runs(monkeypatch):
    monkeypatch.setattr(comparing, "missing_compiler", lambda: "get it like this")
    lines = []
    report = compare("ring_sp", lenses=["compile", "predict"], on_progress=lines.append)
    assert lines == ["get it like this"]
    assert all(
        r.skipped == dict.fromkeys(("compile", "predict"), "get it like this")
        for r in report.results
    )
    assert report.exit_status == 0
    assert "get it like this" in report.to_json()


def test_what_fails_sets_the_exit_status(aot):
    report = compare("ring_sp", small=True, strategies=["ring_sequence"], lenses=["compile"])
    assert report.exit_status == 0
    (result,) = report.results
    compilation = result.compilation
    assert compilation is not None
    differs = Difference("all-reduce", ("seq",), 1.0, 2.0, "closed form")
    crowded = dataclasses.replace(compilation.memory, capacity_bytes=1)
    for broken in (
        dataclasses.replace(compilation, differences=(differs,)),
        dataclasses.replace(compilation, memory=crowded),
    ):
        changed = dataclasses.replace(result, compilation=broken)
        assert dataclasses.replace(report, results=(changed,)).exit_status == 1


def test_the_text_of_verify_is_named():
    program = px.Program(px.PAPERS["ring_sp"].config.small(), px.strategies.data_parallel(2))
    found = program.verify(batch=2, seq_len=16, dtypes=["float64"])
    assert found.text == DEFAULT_TEXT
    assert found.exact


def test_a_model_may_be_a_folder_or_its_config(plan, tmp_path):
    for name in (LLAMA, LLAMA / "config.json"):
        found = plan(model=str(name), strategies=["ring_sequence"], seq_len=32)
        assert found.config == px.huggingface.read_config(LLAMA)
        assert found.small_config.rope_scaling == found.config.rope_scaling
    with pytest.raises(ValueError, match="neither a paper .* nor a folder that is there"):
        compare(model=str(tmp_path / "nothing"), strategies=["ring_sequence"])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type is 'bert', this Parallax reads llama"):
        compare(model=str(tmp_path), strategies=["ring_sequence"])
