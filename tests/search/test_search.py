"""The planner: candidates are all legal, ranked as asked, and losers are told why."""

import math
from dataclasses import replace

import pytest

from parallax.commands.plan import plan
from parallax.lenses.environment import missing_compiler
from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.report.search_page import SearchReport
from parallax.search.candidates import candidates
from parallax.search.ranking import rank
from parallax.search.regimes import regime_maps
from parallax.search.results import SearchRequest
from parallax.strategy import Strategy

pytestmark = pytest.mark.slow

WHERE = cluster("h100_2x8")
MODEL = PAPERS["ring_sp"].config
MOE = PAPERS["cross_node_ep"].config
ASKED = SearchRequest(MODEL, 64, 10_000, 128, WHERE.name)


@pytest.fixture(scope="module")
def found():
    return rank(ASKED, WHERE, compile_top=0)


def tpot(candidate) -> float:
    assert candidate.timing.tpot_s is not None
    return candidate.timing.tpot_s.value


def first_of(search):
    assert search.winner is not None
    return search.winner


def test_candidates_fill_the_cluster_each_once():
    every = list(candidates(MODEL, WHERE, 64))
    assert len(every) > 100
    assert {s.mesh.size for s in every} == {WHERE.devices}
    seen = {(str(s.mesh), s.attention, s.layers, s.experts) for s in every}
    assert len(seen) == len(every)


def test_candidates_hold_what_the_papers_compare():
    """Every paper's own mesh is among them, and what no paper has: three ways at once."""
    meshes = {str(s.mesh) for s in candidates(MODEL, WHERE, 64)}
    assert {"stage=2,tensor=8", "seq=16", "node=2,seq=8", "head_group=4,head_slice=4",
            "data=16", "data=2,tensor=4,seq=2"} <= meshes  # fmt: skip
    assert "expert=16" in {str(s.mesh) for s in candidates(MOE, WHERE, 64)}
    assert not any("expert" in m for m in meshes)


def test_the_order_is_the_objective_s(found):
    able = [c for c in found.ranked if c.fits]
    rates = [c.timing.tokens_per_s.value for c in able]
    assert rates == sorted(rates, reverse=True)
    assert found.winner is found.ranked[0]
    quick = rank(replace(ASKED, objective="tpot"), WHERE, compile_top=0)
    steps = [tpot(c) for c in quick.ranked if c.fits]
    assert steps == sorted(steps)
    assert tpot(first_of(quick)) < tpot(first_of(found))
    frugal = rank(replace(ASKED, objective="energy"), WHERE, compile_top=0)
    assert first_of(frugal).timing.energy_j.value == min(
        c.timing.energy_j.value for c in frugal.ranked if c.fits
    )


def test_figures_of_a_request_add_up(found):
    first = first_of(found).timing
    whole = first.ttft_s.value + 127 * tpot(first_of(found))
    assert first.tokens_per_s.value == pytest.approx(64 * 128 / whole)
    assert sum(first.terms_s.values()) == pytest.approx(whole)
    assert first.tokens_per_s.low is not None
    assert first.tokens_per_s.high is not None
    assert first.tokens_per_s.low < first.tokens_per_s.value < first.tokens_per_s.high


def test_every_loser_is_told_why_and_the_winner_is_not(found):
    assert found.ranked[0].why == ""
    assert all(c.why for c in found.ranked[1:])
    slow = found.ranked[-1].why
    assert "x the first's" in slow or "does not fit" in slow


@pytest.mark.full
def test_what_does_not_fit_says_by_how_much():
    found = rank(SearchRequest(MODEL, 1024, 65_536, 16, WHERE.name), WHERE, compile_top=0)
    out = [c for c in found.ranked if not c.fits]
    assert out
    assert all("does not fit" in c.why and "GB usable" in c.why for c in out)
    fits = [c.fits for c in found.ranked]
    assert fits == sorted(fits, reverse=True)
    assert found.winner is None or found.winner.fits


def test_a_limit_on_tpot_puts_slower_ones_behind(found):
    limit = sorted(tpot(c) for c in found.ranked if c.fits)[3]
    held = rank(replace(ASKED, max_tpot_s=limit), WHERE, compile_top=0)
    assert tpot(first_of(held)) <= limit
    over = next(c for c in held.ranked if c.fits and tpot(c) > limit)
    assert "over the limit" in over.why
    none = rank(replace(ASKED, max_tpot_s=1e-9), WHERE, compile_top=0)
    assert none.winner is None


def test_the_frontier_is_what_nothing_beats(found):
    best = found.frontier
    for c in (c for c in found.ranked if c.fits):
        beaten = [b for b in best
                  if b.timing.tokens_per_s.value >= c.timing.tokens_per_s.value
                  and tpot(b) <= tpot(c)]  # fmt: skip
        assert beaten
    assert all(
        not (a.timing.tokens_per_s.value > b.timing.tokens_per_s.value
             and tpot(a) < tpot(b))
        for a in best for b in best
    )  # fmt: skip


def test_a_prefill_alone_has_no_tpot():
    found = rank(SearchRequest(MODEL, 64, 10_000, 1, WHERE.name), WHERE, compile_top=0)
    assert first_of(found).timing.tpot_s is None
    assert first_of(found).timing.tokens_per_s.value == pytest.approx(
        64 / first_of(found).timing.ttft_s.value
    )


@pytest.mark.full
def test_the_best_are_compiled_and_ranked_by_their_programs(aot):
    small = MODEL.replace(num_layers=2, d_model=1024, num_heads=8, num_kv_heads=8, head_dim=128,
                          d_ff=4096)  # fmt: skip
    found = rank(SearchRequest(small, 32, 1024, 8, WHERE.name), WHERE, compile_top=2)
    first, second, third = found.ranked[:3]
    assert first.compiled is not None
    assert second.compiled is not None
    assert third.compiled is None
    assert first.timing.tokens_per_s.value >= second.timing.tokens_per_s.value
    assert first.timing.memory_bytes.tag == "compiled"
    assert third.timing.memory_bytes.tag == "derived"
    assert set(found.seconds) == {"ranking", "compiling"}


def test_each_group_is_ordered_by_one_kind_of_times_and_says_which(found):
    alone = str(SearchReport(found, WHERE))
    assert "by the analytical model:" in alone
    assert "by compiled programs:" not in alone
    slower = [replace(c, compiled=c.closed_form) for c in found.ranked[:2][::-1]]
    both = replace(found, ranked=(*slower, *found.ranked[2:]))
    text = str(SearchReport(both, WHERE))
    programs, model = (text.index(f"by {kind}:")
                       for kind in ("compiled programs", "the analytical model"))  # fmt: skip
    names = [text.index(f"\n{place} ") for place in (1, 2, 3)]
    assert programs < names[0] < names[1] < model < names[2]
    said = [c["ordered_by"] for c in SearchReport(both, WHERE).to_dict()["candidates"]]
    assert said[:3] == ["compiled programs"] * 2 + ["the analytical model"]
    assert all(c.compiled for c in both.frontier)
    page = SearchReport(both, WHERE).to_html()
    assert page.index("by compiled programs:") < page.index("by the analytical model:")


@pytest.fixture(scope="module")
def aot():
    if missing := missing_compiler():
        pytest.skip(missing)


def test_maps_name_a_winner_and_its_lead():
    maps = regime_maps(MOE.replace(num_layers=2), WHERE, 64, 4096)
    assert [(m.x, m.y) for m in maps] == [
        ("sequence length", "batch"), ("width", "devices"), ("experts", "busiest expert / mean"),
    ]  # fmt: skip
    for m in maps:
        ran = [p for p in m.points if p.seconds]
        assert ran
        for p in ran:
            assert p.seconds[p.winner] == min(p.seconds.values())
            assert p.lead >= 1
    # One sequence cannot be dealt out to 16 data shards, and no batch is needed for a ring.
    one = next(p for p in maps[0].points if (p.x, p.y) == (8192, 1))
    assert "data_parallel" not in one.seconds
    assert "ring_sequence" in one.seconds


def test_more_skew_is_never_faster():
    skewed = regime_maps(MOE.replace(num_layers=2), WHERE, 64, 4096)[2].points
    by_skew = {}
    for p in skewed:
        by_skew.setdefault(p.x, []).append((p.y, p.seconds["expert_parallel"]))
    for row in by_skew.values():
        seconds = [s for _, s in sorted(row)]
        assert seconds == sorted(seconds)
        assert seconds[-1] > seconds[0]


def test_the_report_saves_a_strategy_that_loads(tmp_path):
    report = plan(MODEL, batch=64, prompt_len=2048, output_len=16, compile_top=0)
    paths = report.save(tmp_path)
    assert {p.name for p in paths} == {"plan.json", "plan.html", "strategy.json"}
    assert Strategy.load(tmp_path / "strategy.json") == first_of(report).strategy
    text = str(report)
    assert first_of(report).strategy.name in text
    assert max(map(len, text.splitlines())) <= 100
    page = report.to_html()
    assert page.count("<svg") == 2
    assert "http" not in page


def numbers(data):
    if isinstance(data, dict):
        if {"value", "unit", "tag"} <= set(data):
            yield data
        else:
            for value in data.values():
                yield from numbers(value)
    elif isinstance(data, list):
        for value in data:
            yield from numbers(value)


def test_every_number_of_the_json_has_unit_and_tag():
    report = plan(MODEL, batch=16, prompt_len=2048, output_len=4, compile_top=0)
    found = list(numbers(report.to_dict()["candidates"]))
    assert len(found) > 500
    assert all(math.isfinite(n["value"]) and n["unit"] and n["tag"] for n in found)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": 0}, "batch must be a positive integer"),
        ({"objective": "speed"}, "objective must be one of tps, tpot, energy"),
        ({"max_tpot_s": 0}, "max_tpot_s must be above 0"),
        ({"cluster": "abacus"}, "unknown cluster"),
        ({"model": "nothing"}, "neither a paper"),
        ({"rates": "/nowhere.json"}, "No such file"),
    ],
)
def test_bad_input_is_one_clear_error(changes, says):
    asked = {"model": "ring_sp", "batch": 16, "prompt_len": 1024, "compile_top": 0} | changes
    with pytest.raises(ValueError, match=says):
        plan(asked.pop("model"), **asked)


@pytest.mark.full
def test_a_thousand_devices_are_ranked():
    big = cluster("h100_128x8")
    found = rank(SearchRequest(MODEL, 4096, 8192, 16, big.name), big, compile_top=0)
    assert found.considered > 200
    assert first_of(found).strategy.mesh.size == 1024


def test_prompts_that_are_filled_up_say_so():
    report = plan(MODEL, batch=10, prompt_len=1000, output_len=4, compile_top=0)
    assert isinstance(report, SearchReport)
    filled = [c for c in report.search.ranked if c.runs != (10, 1000)]
    assert filled
    assert all(c.runs[0] >= 10 and c.runs[1] >= 1000 for c in filled)
    assert "prompts padded to" in report.to_html()


@pytest.mark.full
def test_compression_is_a_dimension_of_the_search():
    small = PAPERS["compressed_layerwise"].config.small(head_dim=64)
    report = plan(small, batch=16, prompt_len=512, output_len=8, compile_top=0,
                  compression=["none", "int8", "int8,int8+2:4"])  # fmt: skip
    assert isinstance(report, SearchReport)
    ranked = report.search.ranked
    kinds = {c.compression for c in ranked}
    assert kinds == {None, ("int8", "int8"), ("int8", "int8+2:4")}
    less = 0
    # Stored in fewer bytes, or dense: the same strategy with less memory, unless the layer that is
    # dense for its turn is most of what a device holds.
    for c in ranked:
        twin = next(d for d in ranked if d.strategy == c.strategy and d.compression is None)
        layers = small.num_layers // c.strategy.split().count("layers")
        if c.compression and c.microbatches == twin.microbatches and layers > 2:
            assert c.timing.memory_bytes.value < twin.timing.memory_bytes.value
            less += 1
    assert less
    page = report.to_html()
    assert "int8,int8+2:4" in page
    assert "another function than the dense model" in page


def test_kernels_asked_for_are_every_candidates(found):
    """With attention in one kernel all prefills are faster, by closed form."""
    asked = rank(replace(ASKED, kernels="mosaic"), WHERE, compile_top=0)
    assert {c.strategy.kernels for c in asked.ranked} == {"mosaic"}
    before = {c.strategy.name + str(c.strategy.mesh): c for c in found.ranked}
    for c in asked.ranked:
        other = before[c.strategy.name + str(c.strategy.mesh)]
        if c.microbatches == other.microbatches:
            assert c.timing.ttft_s.value < other.timing.ttft_s.value, c.strategy.name
    report = plan(MODEL, batch=1, prompt_len=512, output_len=1, compile_top=0, kernels="mosaic")
    assert "with mosaic kernels where they can" in " ".join(str(report).split())
