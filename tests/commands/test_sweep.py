"""Sweeps: the grammar, what a point that cannot run says, and one real sweep through the report."""

import json
from importlib import resources
from typing import Any

import jsonschema
import pytest

import parallax as px
from parallax.commands import comparing
from parallax.commands.resolve import resolve
from parallax.commands.sweep import parse_sweep
from parallax.meshes.cluster import cluster, scaled
from parallax.requests.compare import CompareRequest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("text", "axis", "values"),
    [
        ("seq_len:4k..32k", "seq_len", (4096, 8192, 16384, 32768)),
        ("devices:2..16", "devices", (2, 4, 8, 16)),
        ("batch:3,100,1k,1M", "batch", (3, 100, 1024, 1024**2)),
        ("batch:7..7", "batch", (7,)),
    ],
)
def test_the_grammar(text, axis, values):
    found = parse_sweep(text)
    assert (found.axis, found.values) == (axis, values)


BAD = {
    "heads:1..2": "axis one of devices, seq_len, batch",
    "seq_len": "expected axis:low..high",
    "seq_len:": "got ''",
    "seq_len:0..4": "got '0'",
    "seq_len:4K..8K": "got '4K'",
    "seq_len:-4": "got '-4'",
    "seq_len:4..20": "doubling from 4 does not reach 20",
    "seq_len:8..4": "does not reach 4",
    "batch:4,4": "must increase",
    "batch:1..64k": "17 values, at most 16",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_grammar_is_one_line(text):
    with pytest.raises(ValueError, match=BAD[text]) as caught:
        px.compare("ring_sp", sweep=text)
    assert "\n" not in str(caught.value)
    assert f"--sweep={text}" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"batch": 4, "sweep": "batch:4,8"}, "batch is given and swept"),
        ({"mesh": "seq=4", "sweep": "devices:2,4"}, "mesh seq=4 is for one number of devices"),
        ({"strategies": [px.strategies.ring_sequence(4)], "sweep": "devices:2"}, "ring_sequence"),
        ({"lenses": ["measure"], "sweep": "batch:16"}, "measures nothing"),
        ({"lenses": ["verify"], "sweep": "batch:16"}, "compiles every point"),
    ],
)
def test_what_does_not_go_together(more, message):
    with pytest.raises(ValueError, match=message):
        px.compare("ring_sp", **more)


def planned(**changes) -> Any:
    return resolve(CompareRequest(paper="ring_sp", **changes))


def test_devices_rebuild_cluster_and_strategies():
    plan = planned(sweep="devices:2..64", strategies=["tensor_pipeline"])
    shapes = [
        (t.cluster.name, str(t.strategy.mesh)) for t in plan.sweep.tasks if t.cluster and t.strategy
    ]
    assert shapes == [
        ("h100_1x2", "tensor=2"), ("h100_1x4", "tensor=4"), ("h100_1x8", "tensor=8"),
        ("h100_2x8", "stage=2,tensor=8"), ("h100_4x8", "stage=4,tensor=8"), ("h100_8x8", ""),
    ][: len(shapes)]  # fmt: skip
    assert len(shapes) == 5
    assert "4" in plan.sweep.tasks[-1].point.why_not  # eight stages of four layers
    assert {t.point.workload.batch for t in plan.sweep.tasks if t.point.workload} == {1024}
    assert plan.lenses == ("compile", "predict")
    assert "strong scaling: the whole batch stays 1,024" in plan.sweep.constant


def test_a_length_that_does_not_divide_is_a_row():
    plan = planned(sweep="seq_len:100,1600", strategies=["ring_sequence", "data_parallel"])
    reasons = {(t.point.strategy, t.point.value): t.point.why_not for t in plan.sweep.tasks}
    assert "16 does not divide 100" in reasons.pop(("ring_sequence", 100))
    assert set(reasons.values()) == {""}


def test_scaled_clusters_are_found_by_name():
    base = cluster("h100_2x8")
    assert scaled(base, 16) is base
    for devices, name in {1: "h100_1x1", 4: "h100_1x4", 8: "h100_1x8", 32: "h100_4x8"}.items():
        assert scaled(base, devices) == cluster(name)
        assert cluster(name).devices == devices
    with pytest.raises(ValueError, match="12 devices are not a whole number of nodes of 8"):
        scaled(base, 12)


def test_a_sweep_needs_the_compiler(monkeypatch):
    monkeypatch.setattr(comparing, "missing_compiler", lambda: "get it like this")
    with pytest.raises(ValueError, match=r"nothing was checked\. get it like this$"):
        px.compare("ring_sp", sweep="batch:1024")


@pytest.fixture(scope="module")
def report(aot):
    return px.compare(
        "two_level", small=True, sweep="seq_len:40,64,80",
        strategies=["ring_sequence", "data_parallel"],
    )  # fmt: skip


@pytest.mark.full
def test_every_point_is_there_or_says_why(report):
    found = {(p.strategy, p.value): p for p in report.sweep.points}
    assert len(found) == 6
    assert "16 does not divide 40" in found["ring_sequence", 40].why_not
    assert all(p.found for key, p in found.items() if key != ("ring_sequence", 40))
    ring = [found["ring_sequence", x].found for x in (64, 80)]
    assert ring[1].wire.value > ring[0].wire.value > 0
    assert ring[0].gemm_flops.value < ring[1].gemm_flops.value
    assert ring[0].ledger_matches
    assert found["data_parallel", 40].found.wire.value == 0
    assert not report.failed


@pytest.mark.full
def test_the_report_shows_it_everywhere(report):
    from tests.report.test_table import printed

    text = printed(report)
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) < 50
    for piece in ("Along seq_len", "cannot run", "ring_sequence at 40", "the whole batch stays 16"):
        assert piece in text
    data = json.loads(report.to_json())
    schema = json.loads((resources.files("parallax.report") / "report.schema.json").read_text())
    jsonschema.validate(data, schema)
    assert data["request"]["sweep"] == "seq_len:40,64,80"
    assert [p["value"] for p in data["sweep"]["points"]] == [40, 64, 80] * 2
    # The ring crosses nodes, data parallelism sends nothing.
    assert [p["found"]["unvalidated"] != "" for p in data["sweep"]["points"] if p["found"]] == (
        [True, True, False, False, False]
    )
    assert "* unvalidated: no published measurement validates the time between nodes" in (
        " ".join(text.split())
    )
    page = report.html()
    assert "* unvalidated" in page
    assert page.count("<svg") == 2
    assert 'id="sweep-tokens-' in page
    assert "Strategy &#39;ring_sequence&#39;" in page
