"""Sentences about claims: plain where a claim is above the bound, silent where nothing compares."""

import pytest

from parallax.papers import PAPERS
from parallax.report.claims import claim_sentences, tpot_reading
from tests.report import examples


def sentences(results=None, **changes):
    paper = examples.RING_SP
    run = {"config": paper.config, "workload": paper.workload, "cluster": "h100_2x8"} | changes
    results = (examples.tensor_result(), examples.ring_result()) if results is None else results
    found = claim_sentences(paper, run["config"], run["workload"], run["cluster"], results)
    return {(s.claim.strategy, s.claim.quantity): s for s in found}


def test_a_claim_above_the_bound_is_said_plainly():
    found = sentences()["ring_sequence", "TPS"]
    assert found.contradicted
    assert found.text.startswith(
        "ring_sequence: claimed 1.45M tokens/s is 4.4x what the network allows on h100_2x8 "
        "(at most 330k tokens/s, roofline, modelled)"
    )


def test_a_claim_below_the_bound_is_a_share():
    found = sentences()["tensor_pipeline", "TPS"]
    assert not found.contradicted
    assert "claimed 1.20M tokens/s is 62 % of what compute allows" in found.text


@pytest.mark.parametrize(
    ("tokens_per_s", "is_above"), [(1.44e6, True), (1.45e6, False), (1.46e6, False)]
)
def test_the_limit_is_the_bound_itself(tokens_per_s, is_above):
    ring = examples.ring_result(prediction=examples.prediction(tokens_per_s))
    assert sentences((ring,))["ring_sequence", "TPS"].contradicted == is_above


def test_another_size_is_not_compared():
    config = examples.RING_SP.config
    for changes in ({"config": config.small()}, {"workload": examples.small_workload_of(16)}):
        found = sentences(**changes)["ring_sequence", "TPS"]
        assert "not compared: this run is not the paper's size" in found.text
        assert not found.contradicted


def test_without_a_result_or_a_bound_it_says_so():
    assert "this strategy was not run" in sentences(())["ring_sequence", "TPS"].text
    ring = examples.ring_result(prediction=None)
    assert "no modelled bound" in sentences((ring,))["ring_sequence", "TPS"].text


def audited(**changes):
    return {
        (a.claim.strategy, a.claim.quantity): a for a in examples.report(**changes).findings.audited
    }


def test_the_runs_own_predictions_are_the_audits_model():
    base = examples.tensor_result(prediction=examples.prediction(1.93e6, "compute"))
    found = audited(results=(base,))["tensor_pipeline", "TPS"]
    prefill, decode = found.tps
    assert prefill.modelled == examples.prediction(1.93e6, "compute").tokens_per_s
    assert decode.modelled is None
    assert found.verdict == "consistent"
    slow = examples.tensor_result(prediction=examples.prediction(1e6, "compute"))
    assert audited(results=(slow,))["tensor_pipeline", "TPS"].verdict == "modelled, off by"
    for other in ({"cluster": "h100_nvl16"}, {"config": examples.RING_SP.config.small()}):
        assert audited(results=(base,), **other)["tensor_pipeline", "TPS"].tps[0].modelled is None


def test_a_report_without_a_paper_has_no_audit():
    assert examples.report(paper=None).findings.audited == ()


def test_tpot_stands_with_its_reading():
    text = sentences()["ring_sequence", "TPOT"].text
    assert "claimed TPOT 0.7 ms, read as 1/TPS in microseconds, printed as milliseconds" in text
    for paper in PAPERS.values():
        assert "is not the time per output token of a request" in tpot_reading(paper)
