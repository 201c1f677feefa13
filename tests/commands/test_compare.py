"""compare: what it resolves before any work starts, and what it says when a lens cannot run."""

import dataclasses
import json
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

import parallax as px
from parallax.commands import comparing, devices_to_measure, lens_tasks, resolve
from parallax.commands.compare import compare
from parallax.commands.resolve import resolve as resolve_request
from parallax.cost import rates_of
from parallax.lenses.text import DEFAULT_TEXT
from parallax.lenses.verify_decoding import NEW_TOKENS
from parallax.models.config import ModelConfig
from parallax.requests.compare import CompareRequest
from parallax.results.lens_results import Difference
from tests.report import examples
from tests.report.test_table import printed

pytestmark = pytest.mark.slow

LLAMA = Path(__file__).parents[1] / "models" / "huggingface" / "golden" / "llama"


@pytest.fixture
def plan(monkeypatch):
    """What `compare` would run, without running it."""
    caught = []

    class StopHereError(Exception):
        pass

    def stop(*_, **__):
        raise StopHereError

    real = resolve_request

    def keep(request):
        caught.append(real(request))
        return caught[0]

    monkeypatch.setattr("parallax.commands.compare.resolve", keep)
    monkeypatch.setattr(comparing, "run_beside", stop)

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
    assert found.request.cluster == "h100_2x8"


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
    assert found.request.compression == "int8,int4"
    assert found.request.budget == "l2"
    assert plan(**found.request.to_dict()).config == found.config
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
    assert found.request.model == "own"


def test_verify_runs_at_sizes_that_the_devices_divide(plan):
    found = plan("ring_sp", cluster="h100_4x8", seq_len=10_240, strategies=["ring_sequence"])
    ((strategy, workload),) = found.small_cases
    assert strategy.mesh.size == 32
    assert (workload.batch, workload.seq_len) == (16, 96)
    wide = plan("ring_sp", cluster="h100_4x8", strategies=["data_parallel"]).small_cases[0][1]
    assert (wide.batch, wide.seq_len, wide.microbatches) == (32, 80, 1)


def test_small_compiles_what_verify_runs(plan):
    for asked in ({"paper": "ring_sp"}, {"paper": "cross_node_ep"}):
        found = plan(**asked, small=True)
        assert found.config == found.small_config
        assert found.cases == found.small_cases


def all_exact(_, task, **__):
    """The verify lens, in which every strategy is exact."""
    return [examples.ring_result().verification for _ in task.cases]


def test_without_the_compiler_the_rest_runs(monkeypatch):
    monkeypatch.setattr(comparing, "missing_compiler", lambda: "get it like this")
    lines = []
    monkeypatch.setattr(comparing, "run_in_child", all_exact)
    report = compare("ring_sp", on_progress=lines.append)
    assert lines == ["get it like this"]
    assert all(
        r.skipped == dict.fromkeys(("compile", "predict"), "get it like this")
        for r in report.results
    )
    assert report.exit_status == 0
    assert "get it like this" in report.to_json()
    with pytest.raises(ValueError, match=r"nothing was checked\. get it like this$"):
        compare("ring_sp", lenses=["compile", "predict"])


@pytest.mark.full
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


@pytest.mark.full
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
    with pytest.raises(ValueError, match="neither a paper .* nor an existing folder"):
        compare(model=str(tmp_path / "nothing"), strategies=["ring_sequence"])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="model_type is 'bert', this Parallax reads llama"):
        compare(model=str(tmp_path), strategies=["ring_sequence"])


LONG = {"seq_len": 10_001, "strategies": ["ring_sequence", "data_parallel"]}


def shown_everywhere(report, reason):
    """The reason is on the terminal, on the page and in the JSON; the exit status says it."""
    assert report.exit_status == 1
    assert reason in " ".join(printed(report).split())
    assert reason in report.html()
    data = json.loads(report.to_json())
    assert any(reason in line for line in data["failures"])
    schema = json.loads((resources.files("parallax.report") / "report.schema.json").read_text())
    jsonschema.validate(data, schema)
    return {r["name"]: r["refused"] for r in data["results"]}


def test_a_strategy_that_cannot_run_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.setattr(comparing, "missing_compiler", lambda: "get it like this")
    monkeypatch.setattr(comparing, "run_in_child", all_exact)
    report = compare("ring_sp", **LONG)
    refused = shown_everywhere(report, "16 does not divide 10001")
    assert set(refused["ring_sequence"]) == {"verify", "compile", "predict"}
    assert refused["data_parallel"] == {}
    assert report.results[1].skipped  # the compiler is missing, which is nobody's fault
    assert "cannot verify, compile, predict" in printed(report)


def test_a_mesh_of_another_strategys_axes_leaves_it_out(plan):
    found = plan("ring_sp", strategies=["ring_sequence", "layerwise"], mesh="seq=16")
    assert [s.name for s, _ in found.cases] == ["ring_sequence"]
    assert found.names == ("ring_sequence", "layerwise")
    assert "has no mesh axis 'seq'" in found.refused["layerwise"]["verify"]


def test_a_hybrid_is_known_by_its_own_name(plan):
    found = plan("ring_sp", strategies=["ring_sequence+data_parallel"], mesh="data=2,seq=8")
    assert found.names == tuple(s.name for s, _ in found.cases) == ("ring_sequence+data_parallel",)


def test_an_unknown_name_is_bad_input_beside_others_that_run():
    with pytest.raises(ValueError, match="unknown strategy 'star'"):
        compare("ring_sp", strategies=["ring_sequence", "star"])


def test_nothing_that_can_run_is_bad_input_with_the_reasons():
    with pytest.raises(ValueError, match=r"none .* can run\. ring_sequence: .* double_ring: "):
        compare("ring_sp", seq_len=10_001, strategies=["ring_sequence", "double_ring"])


def test_decoding_that_a_strategy_cannot_do_is_known_before(plan):
    with pytest.raises(ValueError, match="prompts must not be packed"):
        compare("ring_sp", phase="decode", packed=True, strategies=["ring_sequence"])


def test_learned_positions_reach_as_far_as_verify_decodes(plan):
    folder = str(LLAMA.with_name("gpt2"))
    found = plan(model=folder, phase="decode", batch=16, seq_len=32, strategies=["data_parallel"])
    assert found.small_config.max_seq_len == found.small_cases[0][1].seq_len + NEW_TOKENS
    assert found.refused == {}
    with pytest.raises(ValueError, match="Use prompts of at most 63"):
        compare(model=folder, phase="decode", batch=16, seq_len=64, strategies=["data_parallel"])


def test_verify_on_more_devices_than_a_process_can_have_is_not_run():
    said = r"nothing was checked\. verify lens not run: 1,024 virtual CPU devices are more than 512"
    with pytest.raises(ValueError, match=said):
        compare(
            "ring_sp", cluster="h100_128x8", batch=1024, strategies=["data_parallel"],
            lenses=["verify"],
        )  # fmt: skip


@pytest.fixture
def one_compiles(monkeypatch):
    """The compile lens, in which the first program fails."""

    def child(function, tasks, **_):
        assert function is comparing.compile_all
        program = examples.compilation()
        return [comparing.Refusal("XLA refused it"), *(program for _ in tasks[1:])]

    monkeypatch.setattr(comparing, "missing_compiler", lambda: None)
    monkeypatch.setattr(comparing, "run_in_child", child)
    monkeypatch.setattr(comparing.Program, "predict", lambda *_: examples.prediction())


def test_a_program_that_does_not_compile_is_left_out(one_compiles):
    strategies = ["ring_sequence", "data_parallel"]
    report = compare("ring_sp", strategies=strategies, lenses=["compile", "predict"])
    refused = shown_everywhere(report, "XLA refused it")
    assert set(refused["ring_sequence"]) == {"compile", "predict"}
    assert report.results[1].prediction is not None
    with pytest.raises(ValueError, match="^XLA refused it$"):
        compare("ring_sp", strategies=strategies[:1], lenses=["compile"])


def test_a_program_that_cannot_be_priced_is_compiled_all_the_same(one_compiles, monkeypatch):
    def refuse(*_):
        raise ValueError("no rate for it")

    monkeypatch.setattr(comparing.Program, "predict", refuse)
    strategies, lenses = ["ring_sequence", "data_parallel"], ["compile", "predict"]
    report = compare("ring_sp", strategies=strategies, lenses=lenses)
    refused = shown_everywhere(report, "no rate for it")
    assert refused["data_parallel"] == {"predict": "no rate for it"}
    assert report.results[1].compilation is not None


def test_compile_all_goes_on_after_a_program_that_fails(monkeypatch):
    done = iter([NotImplementedError("not this\none"), "program"])

    def compile_program(*_, **__):
        found = next(done)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(lens_tasks, "compile_program", compile_program)
    config, strategy = px.PAPERS["ring_sp"].config, px.strategies.data_parallel(16)
    workload = px.PAPERS["ring_sp"].workload
    task = comparing.CompileTask(config, strategy, workload, px.cluster("h100_2x8"))
    found = comparing.compile_all([task, task], on_progress=lambda line: None)
    assert found == [comparing.Refusal("not this one"), "program"]


def test_too_few_devices_to_measure_leave_one_strategy_out(monkeypatch):
    here = "gpu", "NVIDIA H100", 8
    monkeypatch.setattr(devices_to_measure, "run_on_devices", lambda *_, **__: here)
    mine = [px.strategies.data_parallel(8), px.strategies.ring_sequence(16)]
    request = CompareRequest(paper="ring_sp", strategies=mine, lenses=("measure",))
    found = resolve.resolve(request)
    assert set(found.refused) == {"ring_sequence"}
    assert "16 devices to measure on, there are 8" in found.refused["ring_sequence"]["measure"]
    with pytest.raises(ValueError, match="16 devices to measure on, there are 8"):
        resolve.resolve(request.replace(strategies=mine[1:]))


def test_what_cannot_divide_a_model_is_left_out_and_a_batch_that_nobody_chose_divides():
    config = ModelConfig(
        name="fifteen", num_layers=32, d_model=960, num_heads=15, num_kv_heads=5, head_dim=64,
        d_ff=2560, vocab_size=512, mlp="gated",
    )  # fmt: skip
    request = CompareRequest(model=config, cluster="h200_4x8", phase="train", lenses=("compile",))
    found = resolve.resolve(request)
    assert set(found.moved) == {"tensor_pipeline", "two_level"}
    assert "size 5" in found.moved["tensor_pipeline"]
    on_its_own = request.replace(strategies=("tensor_pipeline",), mesh="stage=4,tensor=8")
    with pytest.raises(ValueError, match="size 5"):
        resolve.resolve(on_its_own)
    assert found.workload.batch == 32
    with pytest.raises(ValueError, match="32 does not divide 16"):
        resolve.resolve(request.replace(batch=16, strategies=("data_parallel",)))


@pytest.mark.full
def test_rates_reach_the_prediction(aot, tmp_path):
    rates = rates_of("h100")
    slow = dataclasses.replace(
        rates, name="slow", memory_bytes_per_s=rates.memory_bytes_per_s / 100,
        l2_bytes_per_s=rates.l2_bytes_per_s / 100,
    )  # fmt: skip
    slow.save(tmp_path / "rates.json")
    path = str(tmp_path / "rates.json")
    options: dict = {
        "small": True, "strategies": ["data_parallel"], "lenses": ["predict"], "sweep": None,
    }  # fmt: skip
    found = compare("ring_sp", rates=path, **options)
    shipped = compare("ring_sp", **options)
    slow_prediction, prediction = (r.results[0].prediction for r in (found, shipped))
    assert slow_prediction is not None
    assert prediction is not None
    assert slow_prediction.step_s.value > 1.5 * prediction.step_s.value
    assert found.request["rates"] == path
    assert slow_prediction.rates.startswith("slow")


def test_rates_of_another_gpu_are_refused():
    with pytest.raises(ValueError, match="are for GPU 'h200', cluster h100_2x8 has 'h100'"):
        compare("ring_sp", rates=rates_of("h200"))


@pytest.mark.parametrize(
    ("lenses", "said"),
    [(None, "the default --lenses=verify,compile,predict"),
     (("verify", "measure"), "no other lens; --lenses=verify,measure")],
)  # fmt: skip
def test_several_processes_only_measure(monkeypatch, lenses, said):
    monkeypatch.setattr("parallax.commands.check_request.process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"Give --lenses=measure, .* without --dist") as error:
        compare("ring_sp", lenses=lenses)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mesh_larger_than_all_processes_devices_is_refused(monkeypatch):
    """One process would take more virtual devices; several have those that they started with."""
    monkeypatch.setattr(devices_to_measure, "process_count", lambda: 2)
    monkeypatch.setattr(devices_to_measure, "run_on_devices", lambda *_, **__: ("cpu", "cpu", 4))
    with pytest.raises(ValueError, match="needs 16 devices to measure on, there are 4"):
        compare("ring_sp", lenses=("measure",))
