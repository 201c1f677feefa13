"""The papers as data: sizes against hand arithmetic, claims against each other, small models."""

import math
import re
from dataclasses import replace

import pytest

from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS, PENDING_PAPERS, paper
from parallax.spmd import ShardedTransformer
from parallax.strategies import STRATEGIES
from parallax.strategies.tensor_pipeline import tensor_pipeline

ALL = (*PAPERS.values(), *PENDING_PAPERS.values())

# By hand: layers x (4 D^2 + matrices x D x F + 2 D) + D + 2 V D.
NUM_PARAMS = {
    "ring_sp": 4 * (268_435_456 + 536_870_912 + 16_384) + 8_192 + 524_288_000,
    "two_level": 2 * (268_435_456 + 536_870_912 + 16_384) + 8_192 + 524_288_000,
    "cache_layerwise": 16 * (268_435_456 + 536_870_912 + 16_384) + 8_192 + 524_288_000,
    "compressed_layerwise": 16 * (67_108_864 + 201_326_592 + 8_192) + 4_096 + 262_144_000,
}


@pytest.mark.parametrize("name", PAPERS)
def test_num_params_by_hand(name):
    assert PAPERS[name].config.num_params == NUM_PARAMS[name]


def test_the_figures_every_paper_gives():
    for name in ("ring_sp", "two_level", "cache_layerwise"):
        it = PAPERS[name]
        assert (it.config.d_model, it.config.d_ff, it.config.num_heads) == (8192, 32768, 16)
        assert (it.workload.batch, it.workload.seq_len) == (1024, 10_000)
    last = PAPERS["compressed_layerwise"]
    assert (last.workload.batch, last.workload.microbatches) == (128, 8)
    assert [PAPERS[n].config.num_layers for n in PAPERS] == [4, 2, 16, 16]
    assert {p.config.dtype for p in PAPERS.values()} == {"float16"}


def _fitted(workload, strategy):
    """The workload with microbatches this strategy's share of the batch can be cut into."""
    local = workload.batch // strategy.split().count("act_batch")
    return replace(workload, microbatches=math.gcd(workload.microbatches, local))


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("name", PAPERS)
def test_every_strategy_of_a_paper_can_run_it(name, size):
    it = PAPERS[name]
    config, workload = it.config, it.workload
    if size == "small":
        config, workload = config.small(), it.small_workload
    assert it.strategies[0] == "tensor_pipeline"
    for strategy in (STRATEGIES[s]() for s in it.strategies):
        assert strategy.mesh.size == cluster(it.cluster).devices
        ShardedTransformer(config, strategy, _fitted(workload, strategy))


@pytest.mark.parametrize("name", ["cache_layerwise", "compressed_layerwise"])
def test_layerwise_models_make_sixteen_stages_in_small_too(name):
    it = PAPERS[name]
    stages = tensor_pipeline(tensor=1, stage=16)
    ShardedTransformer(it.config.small(), stages, it.small_workload)


@pytest.mark.parametrize("it", ALL, ids=lambda it: it.name)
def test_tpot_has_the_reading_it_is_given(it):
    """inv_tps is 1/TPS to print accuracy; *_us_printed_ms is 1/TPS in us beside the unit ms."""
    tps = {c.strategy: c.value for c in it.claims if c.quantity == "TPS"}
    tpots = [c for c in it.claims if c.quantity == "TPOT"]
    assert len(tpots) == 2
    for claim in tpots:
        assert claim.unit == "ms"
        scale = {"inv_tps": 1e3, "inv_tps_us_printed_ms": 1e6}.get(claim.reading)
        found = None if scale is None else scale / tps[claim.strategy]
        assert (found is None) == (claim.reading == "sync_overhead_per_token")
        assert found is None or found == pytest.approx(claim.value, rel=0.025)


@pytest.mark.parametrize("it", ALL, ids=lambda it: it.name)
def test_sentences_are_one_line_and_name_no_placeholder(it):
    texts = [v.statement for v in it.validations] + [c.note for c in it.claims]
    texts += [s for a in it.assumptions for s in (a.name, a.value, a.reason)]
    assert not [t for t in texts if "\n" in t or t != t.strip() or t.endswith(".,")]
    assert len({a.name for a in it.assumptions}) == len(it.assumptions)


def test_a_claim_without_a_system_is_said():
    """A paper whose claims name a method that is not in this release says so."""
    for it in PAPERS.values():
        methods = {c.strategy for c in it.claims} - {""}
        assert bool(methods - set(STRATEGIES)) == bool(it.missing), it.name


def test_an_unknown_paper_lists_the_choices():
    with pytest.raises(ValueError, match=re.escape("unknown paper 'ring'. Use one of: ring_sp,")):
        paper("ring")


def test_the_paper_with_experts_is_one_clear_line():
    with pytest.raises(ValueError, match=r"'cross_node_ep'.*16 experts.*Use one of") as caught:
        paper("cross_node_ep")
    assert "\n" not in str(caught.value)
    assert PENDING_PAPERS["cross_node_ep"].claims
