"""Places of a study against single estimates; sentences that turn with the data; the record."""

import dataclasses
import html
import json
from pathlib import Path
from typing import Any

import pytest

from parallax.analytic import PackedWeights
from parallax.analytic.fastest import fastest, steady_share
from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.programs.steps import make_step
from parallax.strategies import build
from parallax.studies.regimes.conclusions import conclusions
from parallax.studies.regimes.layerwise import model, strategy_for, study
from parallax.studies.regimes.page import RegimesReport, load
from parallax.studies.regimes.places import (
    BASELINE,
    LAYERWISE,
    NO_COMMUNICATION,
    STORED,
    Grid,
    Place,
)
from parallax.studies.regimes.plot import panels
from parallax.studies.regimes.record import from_record, to_record
from parallax.workload import Workload

ROOT = Path(__file__).resolve().parents[3]
RECORD = ROOT / "benchmarks" / "cpu" / "regimes.json"
SMALL = Grid(
    clusters=("h100_2x8",), stored=("float16", "int8, MLP int8+2:4"), attentions=("GQA",),
    batches=(1, 64), widths=(1024, 4096), depths=(16,),
)  # fmt: skip


@pytest.fixture(scope="module")
def places():
    return study(SMALL)


@pytest.fixture(scope="module")
def record():
    return load(RECORD)


def place(layerwise: Any = 2.0, baseline: Any = 3.0, none: Any = 4.0, **at):
    seconds = {LAYERWISE: layerwise, BASELINE: baseline, NO_COMMUNICATION: none}
    where = {"cluster": "h100_2x8", "phase": "decode", "attention": "MHA", "stored": "float16",
             "unpacking": "", "depth": 16, "batch": 16, "width": 1024}  # fmt: skip
    return Place(**{**where, **at}, seconds={k: v for k, v in seconds.items() if v is not None})


def test_a_place_is_each_strategy_at_its_best(places):
    assert len(places) == 2 * 3 * 4  # phases, storages and their readings, batches x widths
    found = next(p for p in places if (p.phase, p.unpacking, p.batch, p.width)
                 == ("decode", "kernel", 64, 4096))  # fmt: skip
    where, config = cluster("h100_2x8"), model(4096, "GQA", 16)
    weights = PackedWeights(STORED[found.stored], "kernel")
    for name in (LAYERWISE, BASELINE, NO_COMMUNICATION):
        strategy = strategy_for(name, config, where, 64)
        step = make_step(config, strategy, Workload(64, 2048), "decode")
        best = fastest(step, where, weights=weights)
        assert found.seconds[name] == best.estimate.cost.seconds


def test_few_keys_stay_whole_under_tensor_parallelism():
    """A group of eight cannot split the four key/value heads of a 4096-wide GQA model."""
    where = cluster("h100_2x8")
    narrow = strategy_for(BASELINE, model(4096, "GQA", 16), where, 16)
    wide = strategy_for(BASELINE, model(8192, "GQA", 16), where, 16)
    assert narrow.rules.kv_heads is None
    assert wide.rules.kv_heads == "tensor"


def test_one_sequence_takes_one_device():
    strategy = strategy_for(NO_COMMUNICATION, model(1024, "MHA", 16), cluster("h100_2x8"), 4)
    assert strategy.mesh.size == 4


def test_leads_and_winners():
    assert place().winner == LAYERWISE
    assert place().lead_over(BASELINE) == 1.5
    assert place(none=1.0).winner == NO_COMMUNICATION
    assert place(none=1.0).lead_over(BASELINE, NO_COMMUNICATION) == 0.5
    assert place(layerwise=None).lead_over(BASELINE) is None
    assert place(None, None, None).winner == ""


def test_sentences_turn_with_the_data():
    ahead = conclusions([place(batch=b, phase=p) for b in (16, 64) for p in ("prefill", "decode")])
    behind = conclusions(
        [place(5.0, batch=b, phase=p) for b in (16, 64) for p in ("prefill", "decode")]
    )
    assert ahead[0].startswith("Layer-wise is the fastest in 4 of 4 places")
    assert behind[0].startswith("Layer-wise is the fastest in none of 4 places")
    assert "It wins at: phase decode, prefill; batch 16 to 64; width 1,024" in ahead[1]
    assert "by 1.50 times" in ahead[1]
    assert behind[1].startswith("There is no place in this study")
    assert "ahead in 2 of 2 places that both run; at a median of 1.50 times" in ahead[2]
    assert "At every batch it is ahead in most places" in ahead[2]
    assert "ahead in none of 2 places that both run; at a median of 0.60 times" in behind[2]
    assert "At no batch is it ahead in most places" in behind[2]


def test_the_batch_from_which_it_wins_is_found():
    rising = [place(1.0 if b >= 64 else 9.0, batch=b, phase="prefill") for b in (1, 16, 64, 256)]
    assert any("From batch 64 on it is ahead" in line for line in conclusions(rising))
    once = [place(1.0 if b == 16 else 9.0, batch=b, phase="prefill") for b in (1, 16, 64)]
    assert any("only at batch 16" in line for line in conclusions(once))


def test_a_rival_that_does_not_fit_is_named():
    lines = conclusions([place(none=None), place(5.0)])
    assert "In 1 of 1 of these places a whole model does not fit one device" in lines[1]


def test_packing_and_the_papers_comparison_turn():
    def pair(seconds):
        packed = place(seconds, stored="int8, MLP int8+2:4", unpacking="xla")
        return conclusions([place(), packed])

    assert any("unpacked by XLA 1.50 times as long" in line for line in pair(3.0))
    assert any("unpacked by XLA 0.50 times as long" in line for line in pair(1.0))
    assert any("unpacked by XLA it is ahead in 1 of 1 places (at a median of 3.00" in line
               for line in pair(1.0))  # fmt: skip
    assert any("it is ahead in none of 1 places" in line for line in pair(9.0))


def test_the_cache_is_spoken_of():
    kept = dataclasses.replace(place(), hit_rate=1.0)
    assert any("the fastest in 1 of them" in line for line in conclusions([kept]))
    assert any("In no place does the L2 cache keep" in line for line in conclusions([place()]))
    with pytest.raises(ValueError, match="expected at least one place"):
        conclusions([])


def test_full_pipelines_are_spoken_of_and_turn():
    def said(layerwise):
        steady = {LAYERWISE: layerwise, BASELINE: 3.0}
        lines = conclusions([dataclasses.replace(place(9.0), steady_s=steady)])
        return next(line for line in lines if line.startswith("If other requests"))

    assert "decode would be ahead of TP x PP in 1 of 1 places (at a median of 1.50" in said(2.0)
    assert "in none of 1 places" in said(6.0)


def test_a_full_pipeline_by_hand():
    """16 stages: a step of 16 microbatches takes 31 ticks alone, 16 of a full pipeline; of four
    microbatches 19 and, since the next token waits for all stages, 16."""
    model = PAPERS["cache_layerwise"].config

    def share(name, phase, microbatches):
        step = make_step(model, build(name), Workload(64, 32), phase)
        return steady_share(step.with_microbatches(microbatches))

    assert share("layerwise", "decode", 16) == 16 / 31
    assert share("layerwise", "decode", 4) == 16 / 19
    assert share("layerwise", "prefill", 4) == 4 / 19
    assert share("layerwise", "prefill", 64) == 64 / (64 + 30)  # handoffs beside layers
    assert share("data_parallel", "decode", 1) == 1.0


def test_a_record_comes_back(places):
    grid, back = from_record(json.loads(json.dumps(to_record(SMALL, places))))
    assert grid == SMALL
    assert len(back) == len(places)
    for a, b in zip(places, back, strict=True):
        assert (a.batch, a.width, a.unpacking) == (b.batch, b.width, b.unpacking)
        assert b.seconds == pytest.approx(a.seconds, rel=1e-4)
        assert a.why_not == b.why_not


@pytest.mark.parametrize(
    "damage",
    [lambda d: d.pop("maps"), lambda d: d["maps"][0]["hit_rate"].pop(),
     lambda d: d["grid"].update(extra=1), lambda d: d.update(record_version=9)],
)  # fmt: skip
def test_a_damaged_record_is_refused(places, damage, tmp_path):
    data = json.loads(json.dumps(to_record(SMALL, places)))
    damage(data)
    (tmp_path / "regimes.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="Run parallax regimes again"):
        load(tmp_path / "regimes.json")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        load(tmp_path / "none.json")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="not JSON"):
        load(tmp_path / "text")


@pytest.mark.parametrize(
    ("change", "why"),
    [({"stored": ("int7",)}, "unknown storage"), ({"widths": (1000,)}, "multiples of 1024"),
     ({"batches": (0,)}, "at least 1"), ({"depths": (0,)}, "at least 1")],
)  # fmt: skip
def test_bad_grids(change, why):
    with pytest.raises(ValueError, match=why):
        SMALL.replace(**change)


def test_it_is_shown_and_saved(places, tmp_path):
    report = RegimesReport(SMALL, places)
    names = {p.name for p in report.save(tmp_path)}
    assert names == {"regimes.json", "regimes.md", "regimes.html", "regimes.svg",
                     "regimes_baseline.svg"}  # fmt: skip
    page = html.unescape((tmp_path / "regimes.html").read_text())
    for line in conclusions(places):
        assert line.split(";")[0] in page
    assert len(panels(places)) == 2 * 3
    assert (tmp_path / "regimes.svg").read_text().startswith('<svg xmlns="http')


def test_the_page_is_the_record_s(record):
    assert (ROOT / "docs" / "generated" / "regimes.md").read_text(
        encoding="utf-8"
    ) == record.markdown()


def test_the_record_is_of_this_closed_form(record):
    """Three of its maps come out again: else run parallax regimes --full."""
    assert record.grid == Grid()
    one = Grid(clusters=("h100_nvl16",), stored=("float16", "int4+2:4"), attentions=("MHA",),
               batches=(4, 64), widths=(8192,), depths=(16, 64))  # fmt: skip
    known = {dataclasses.astuple(dataclasses.replace(p, seconds={}, steady_s={}, why_not={}))[:8]:
             p for p in record.places}  # fmt: skip
    for found in study(one):
        key = dataclasses.astuple(found)[:8]
        assert known[key].seconds == pytest.approx(found.seconds, rel=1e-3), key
        assert known[key].steady_s == pytest.approx(found.steady_s, rel=1e-3), key
