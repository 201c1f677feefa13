"""The papers as data: sizes against hand arithmetic, claims against each other, small models."""

import math
import re
from dataclasses import replace

import pytest

from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS, paper
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import STRATEGIES, build, layerwise

ALL = tuple(PAPERS.values())

# By hand: layers x (4 D^2 + matrices x D x F + 2 D) + D + 2 V D; with experts, E times the
# matrices, and a router of D x E.
NUM_PARAMS = {
    "ring_sp": 4 * (268_435_456 + 536_870_912 + 16_384) + 8_192 + 524_288_000,
    "two_level": 2 * (268_435_456 + 536_870_912 + 16_384) + 8_192 + 524_288_000,
    "cache_layerwise": 16 * (268_435_456 + 536_870_912 + 16_384) + 8_192 + 524_288_000,
    "cross_node_ep": 4 * (268_435_456 + 16 * 536_870_912 + 8_192 * 16 + 16_384)
    + 8_192
    + 524_288_000,
    "compressed_layerwise": 16 * (67_108_864 + 201_326_592 + 8_192) + 4_096 + 262_144_000,
}


@pytest.mark.parametrize("name", PAPERS)
def test_num_params_by_hand(name):
    assert PAPERS[name].config.num_params == NUM_PARAMS[name]


def test_the_figures_every_paper_gives():
    for name in ("ring_sp", "two_level", "cache_layerwise", "cross_node_ep"):
        it = PAPERS[name]
        assert (it.config.d_model, it.config.d_ff, it.config.num_heads) == (8192, 32768, 16)
        assert (it.workload.batch, it.workload.seq_len) == (1024, 10_000)
    last = PAPERS["compressed_layerwise"]
    assert (last.workload.batch, last.workload.microbatches) == (128, 8)
    assert [PAPERS[n].config.num_layers for n in PAPERS] == [4, 2, 16, 16, 4]
    assert PAPERS["cross_node_ep"].config.num_experts == 16
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
    for strategy in map(build, it.strategies):
        assert strategy.mesh.size == cluster(it.cluster).devices
        ShardedTransformer(config, strategy, _fitted(workload, strategy))


@pytest.mark.parametrize("name", ["cache_layerwise", "compressed_layerwise"])
def test_layerwise_models_make_sixteen_stages_in_small_too(name):
    it = PAPERS[name]
    ShardedTransformer(it.config.small(), layerwise(16), it.small_workload)


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
    texts = [v.statement for v in it.validations] + [c.reason for c in it.claims]
    texts += [s for a in it.assumptions for s in (a.name, a.value, a.reason)]
    assert not [t for t in texts if "\n" in t or t != t.strip() or t.endswith(".,")]
    assert len({a.name for a in it.assumptions}) == len(it.assumptions)


def test_every_claim_is_about_a_system_that_runs():
    """What a claim names is compared, and the paper's own system is among it."""
    for it in PAPERS.values():
        methods = {c.strategy for c in it.claims} - {""}
        assert methods <= set(it.strategies) <= set(STRATEGIES), it.name
        assert it.proposed in it.strategies


def test_an_unknown_paper_lists_the_choices():
    with pytest.raises(ValueError, match=re.escape("unknown paper 'ring'. Use one of: ring_sp,")):
        paper("ring")
