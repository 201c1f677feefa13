"""The papers' own validation points: what passes, what fails, what stays undecided."""

from dataclasses import replace

import pytest

from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.papers.paper import Validation
from parallax.papers.scaling import scale_rows
from parallax.report.validation import CHECKS, verdicts
from parallax.results.lens_results import Figure
from parallax.workload import Workload
from tests.report import examples


def decide(check, results, paper=examples.RING_SP, cluster_name="h100_2x8", scale=(), **changes):
    one = replace(paper, validations=(Validation("a point", check),))
    run = {"config": paper.config, "workload": paper.workload} | changes
    (verdict,) = verdicts(one, run["config"], run["workload"], cluster_name, results, scale)
    assert verdict.evidence
    return verdict


def on_the_cluster(result, step_s, half_s=0.1):
    """The result, timed on the paper's model on the H100s themselves."""
    figure = Figure(step_s, "s", "measured", step_s - half_s, step_s + half_s)
    measured = replace(
        examples.measurement(), device=cluster("h100_2x8").gpu.device_kind, model="ring_sp",
        workload=examples.RING_SP.workload, step_s=figure,
    )  # fmt: skip
    return replace(result, measurement=measured)


TENSOR, RING = examples.tensor_result(), examples.ring_result()


def test_every_check_of_every_paper_is_known_and_decides():
    for paper in PAPERS.values():
        assert {v.check.partition(":")[0] for v in paper.validations} <= set(CHECKS)
    for paper in PAPERS.values():
        found = verdicts(paper, paper.config, paper.workload, paper.cluster, (), ())
        assert len(found) == len(paper.validations)


@pytest.mark.parametrize(("ring_s", "status"), [(5.0, "pass"), (9.0, "fail"), (7.05, "undecided")])
def test_faster_by_times_of_the_cluster(ring_s, status):
    results = (on_the_cluster(TENSOR, 7.0), on_the_cluster(RING, ring_s))
    assert decide("faster:ring_sequence", results).status == status


@pytest.mark.parametrize(
    "changes",
    [{"device": "cpu"}, {"model": "ring_sp.small"}, {"devices": 8}, {"workload": Workload(16, 80)}],
    ids=lambda changes: next(iter(changes)),
)
def test_times_of_something_else_decide_nothing(changes):
    ring = on_the_cluster(RING, 1.0)
    assert ring.measurement is not None
    measured = replace(ring.measurement, **changes)
    ring = replace(ring, measurement=measured, prediction=examples.prediction(2e6))
    results = (on_the_cluster(TENSOR, 7.0), ring)
    assert decide("faster:ring_sequence", results).status == "undecided"


def test_a_bound_below_the_baselines_claim_refutes_and_one_above_ranks_nothing():
    found = decide("faster:ring_sequence", (TENSOR, RING))
    assert found.status == "fail"
    assert "at most 330k tokens/s (modelled) on h100_2x8, below the baseline's" in found.evidence
    fast = examples.ring_result(prediction=examples.prediction(1.9e6))
    assert decide("faster:ring_sequence", (TENSOR, fast)).status == "undecided"


def test_another_size_or_a_missing_strategy_stays_undecided():
    small = examples.RING_SP.config.small()
    assert decide("faster:ring_sequence", (TENSOR, RING), config=small).status == "undecided"
    assert "was not run" in decide("faster:two_level", (TENSOR, RING)).evidence


def test_fewer_bytes_and_shares_of_the_weights():
    assert decide("fewer_bytes:ring_sequence", (TENSOR, RING)).status == "pass"
    more = examples.ring_result(
        compilation=examples.compilation(
            collectives=(examples.collective("all-gather", ("seq",), 9e12, 1),)
        )
    )
    assert decide("fewer_bytes:ring_sequence", (TENSOR, more)).status == "fail"
    assert decide("weights_share:tensor_pipeline:16", (TENSOR,)).status == "fail"
    assert decide("weights_share:tensor_pipeline:8", (TENSOR,)).status == "pass"


def test_the_same_workload():
    assert decide("same_workload", (TENSOR, RING)).status == "pass"
    assert decide("same_workload", (TENSOR,)).status == "undecided"
    other = examples.ring_result(compilation=examples.compilation(workload=Workload(8, 80)))
    assert decide("same_workload", (TENSOR, other)).status == "fail"


def test_a_layer_does_not_fit_the_cache_and_says_by_how_much():
    found = decide("layer_fits_cache", (), PAPERS["cache_layerwise"])
    assert found.status == "fail"
    assert "one layer is 1.61 GB in float16, L2 of h100 is 52.4 MB: 31x the cache" in found.evidence
    found = decide("compressed_layer_fits_cache", (), PAPERS["compressed_layerwise"])
    assert found.status == "fail"
    assert "one layer is 168 MB" in found.evidence
    assert "3.2x the cache" in found.evidence
    tiny = replace(PAPERS["cache_layerwise"], config=PAPERS["cache_layerwise"].config.small())
    assert decide("layer_fits_cache", (), tiny).status == "pass"


def test_layers_deal_out():
    assert decide("layers_deal_out", (), PAPERS["cache_layerwise"]).status == "pass"
    assert decide("layers_deal_out", (), examples.RING_SP).status == "fail"


def test_one_layer_a_device_has_to_grow_with_the_devices():
    paper = PAPERS["compressed_layerwise"]
    found = decide("grows_linearly", (), paper, scale=scale_rows(paper, (8, 16)))
    assert found.status == "fail"
    assert found.evidence.startswith("from 8 layers and devices to 16: prefill 0.78x, not 2.0x")
    alone = decide("grows_linearly", (), paper)
    assert (alone.status, "modelled" in alone.evidence) == ("undecided", True)


def test_what_needs_more_is_undecided():
    assert decide("needs:lengths above 16k", ()).evidence == "needs lengths above 16k"
