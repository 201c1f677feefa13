"""Fields that describe themselves: what derives from them, and what older files lack."""

import inspect
import json
from importlib import resources

import jsonschema
import pytest

import parallax as px
from parallax.requests.compare import CompareRequest
from parallax.requests.generate import GenerateRequest
from parallax.requests.option import build, described, json_schema
from parallax.requests.pairs import PairsRequest
from parallax.requests.plan import PlanRequest
from parallax.requests.train import TrainRequest
from parallax.studies.pairs.pairs import compare_pairs

CALLBACKS = {"on_progress", "on_step", "on_text", "should_stop"}
# Function -> its request, and arguments that are not fields as they are.
CALLED = {
    "compare": (px.compare, CompareRequest, {}),
    "plan": (px.plan, PlanRequest, {"compression": "compressions"}),
    "pairs": (compare_pairs, PairsRequest, {}),
    "train": (px.train, TrainRequest, {"optimizer": None}),
    "generate": (px.generate, GenerateRequest, {}),
}


@pytest.mark.parametrize("name", CALLED)
def test_a_function_takes_the_fields_of_its_request(name):
    function, request, other = CALLED[name]
    defaults = {f: r.default for f, r in request.__dataclass_fields__.items()}
    taken = {}
    for argument, parameter in inspect.signature(function).parameters.items():
        if argument not in CALLBACKS and other.get(argument, argument) is not None:
            taken[other.get(argument, argument)] = parameter.default
    assert set(taken) == set(defaults)
    for field, default in taken.items():
        if default is not inspect.Parameter.empty and field != "compressions":
            assert default == defaults[field], field


def test_every_default_can_be_built():
    assert build(CompareRequest, {}) == CompareRequest()
    assert build(CompareRequest, {"batch": 3}).batch == 3
    assert build(GenerateRequest, {"prompt": ("a",)}).prompts == ("a",)


def test_the_schema_of_a_report_is_that_of_the_fields():
    text = (resources.files("parallax.report") / "report.schema.json").read_text(encoding="utf-8")
    assert json.loads(text)["properties"]["request"] == json_schema(CompareRequest)


def test_a_request_follows_its_schema_and_comes_back():
    request = CompareRequest(
        paper="ring_sp", strategies=("ring_sequence", px.strategies.data_parallel(16)),
        mesh="seq=16", compression=("int8", "int4"), lenses=("predict",), rates="a.json",
    )  # fmt: skip
    data = json.loads(json.dumps(request.to_dict()))
    jsonschema.validate(data, json_schema(CompareRequest))
    assert data["strategies"] == ["ring_sequence", "data_parallel"]
    assert data["compression"] == "int8,int4"
    assert CompareRequest.from_dict(data, "it").to_dict() == data


def test_a_report_of_an_older_version_still_loads():
    """As a version before budgets, kernels and rates wrote it."""
    old = {
        "paper": "ring_sp", "model": None, "strategies": ["ring_sequence"], "mesh": None,
        "batch": None, "seq_len": None, "microbatches": None, "dtype": None, "cluster": "h100_2x8",
        "lenses": ["verify"], "packed": False, "small": False, "phase": "prefill",
        "remat": "layer", "text": None, "repeats": 10,
    }  # fmt: skip
    found = CompareRequest.from_dict(old, "--from_report=old.json")
    assert (found.paper, found.cluster, found.budget, found.rates) == (
        "ring_sp", "h100_2x8", None, None,
    )  # fmt: skip
    found.refuse_unused()  # it recorded remat and repeats whatever ran


def test_a_report_of_a_newer_version_is_one_clear_line():
    with pytest.raises(ValueError, match=r"--from_report=new.json: field 'colour' of 'request'"):
        CompareRequest.from_dict({"colour": "red"}, "--from_report=new.json")


def test_what_would_be_ignored_is_refused_by_python_too():
    with pytest.raises(ValueError, match="remat: phase prefill has no backward pass"):
        px.compare("ring_sp", remat="none")
    with pytest.raises(ValueError, match="repeats: the measure lens"):
        px.compare_papers(["ring_sp"], repeats=3)
    with pytest.raises(ValueError, match="max_tpot_s: output_len is 1, a prefill alone"):
        px.plan("ring_sp", batch=1, prompt_len=16, output_len=1, max_tpot_s=1.0, compile_top=0)


@pytest.mark.parametrize("name", CALLED)
def test_every_field_with_a_flag_says_what_it_means(name):
    tokens = {"seq_len", "prompt_len", "output_len", "max_new_tokens", "cache_len"}
    for one in described(CALLED[name][1]):
        assert one.option.help.endswith(".")
        assert (one.option.unit == "tokens") == (one.flag in tokens), one.flag
        assert (one.option.kind == "choice") == bool(one.option.choices)
