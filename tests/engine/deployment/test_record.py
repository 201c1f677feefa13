"""The documents' figures are those of the committed record of benchmarks/deployment.py."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest

from parallax.engine.deployment.full_size import prefilled
from parallax.engine.deployment.modelled import modelled_recovery
from parallax.papers import PAPERS

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
RECORD = BENCHMARKS / "cpu" / "deployment.json"
_SPEC = importlib.util.spec_from_file_location("record_of", BENCHMARKS / "deployment.py")
assert _SPEC is not None
assert _SPEC.loader is not None
benchmark = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(benchmark)


def test_twenty_losses_each_and_a_hundred_switches():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["passed"]
    assert record["command"].startswith("python benchmarks/deployment.py")
    assert {"jax", "python"} <= set(record["versions"])
    sizes = {(c["setup"]["devices"], len(c["setup"]["spares"])) for c in record["cases"].values()}
    assert sizes == {(17, 1), (16, 0)}
    for case in record["cases"].values():
        assert case["setup"]["equals_unsharded"] is True
        trials = case["losses"]["trials"]
        assert len(trials) == 20
        assert all(t["kind"] == "simulated" and t["layers"] for t in trials)
        assert sum(t["lost_requests"] + t["changed_tokens"] for t in trials) == 0
        assert sum(t["compiled_programs"] for t in trials) == 0
        assert case["losses"]["unprepared"]["compiled_programs"] > 0
    # Without a spare a stage gets a second layer, and what was lost is run again at its pace.
    spare, none = (c["modelled"]["losses"] for c in record["cases"].values())
    assert none["recompute_s"]["max"] > spare["recompute_s"]["max"]
    assert none["resume_s"]["p50"] > spare["resume_s"]["p50"]
    (switched,) = (c["switches"] for c in record["cases"].values() if c["switches"])
    assert {where: s["count"] for where, s in switched.items()} == {"device": 100, "host": 100}


def test_the_modelled_part_is_that_of_the_trials():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    again = copy.deepcopy(record)
    for case in again["cases"].values():
        case["modelled"]["losses"] = {}
    benchmark.model_again(again)
    assert json.loads(json.dumps(again)) == record


def test_sequences_come_back_in_order():
    prompts = (8, 24, 9, 15)
    assert [prefilled(n, prompts) for n in (0, 32, 56, 60)] == [0, 2, 4, 4]


def test_a_slower_stage_sets_the_pace():
    """Two microbatches: all layers once, and the slowest stage once more."""
    config, sizes = PAPERS["compressed_layerwise"].config, (128, 10_000)
    even, uneven, all_in_one = (
        modelled_recovery(config, 0, 0, groups, *sizes, microbatches=2).recompute_s
        for groups in ([1, 1, 1, 1], [1, 2, 1], [4])
    )
    assert uneven / even == pytest.approx((4 + 2) / (4 + 1))
    assert all_in_one / even == pytest.approx((4 + 4) / (4 + 1))
