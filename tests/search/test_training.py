"""The planner of training: what it tries, that pruning loses nothing, and what it says."""

import json
from dataclasses import replace

import pytest

import parallax as px
from parallax.analytic import estimate
from parallax.analytic.train_memory import train_memory
from parallax.commands.plan import plan
from parallax.experiments.flags import read_flags
from parallax.experiments.plan import Flags
from parallax.meshes.cluster import cluster
from parallax.models.config import ModelConfig
from parallax.parallel.layer_parts import Pipeline
from parallax.programs.steps import make_step
from parallax.report.train_plan_page import TrainPlanReport
from parallax.search.train_choices import REMATS, doubling
from parallax.search.train_layouts import layouts, schedules, token_axes
from parallax.search.train_ranking import rank_training
from parallax.search.train_results import TrainSearchRequest
from parallax.strategies import data_parallel, hybrid, layerwise, ring_sequence, tensor_pipeline
from parallax.strategy import Strategy
from parallax.workload import Workload

WHERE, TWO_NODES = cluster("h100_1x4"), cluster("h100_2x8")
MODEL = ModelConfig(
    name="small", num_layers=4, d_model=1024, num_heads=8, num_kv_heads=8, head_dim=128, d_ff=4096,
    vocab_size=32768, mlp="gated", dtype="bfloat16",
)  # fmt: skip
ASKED = TrainSearchRequest(MODEL, 16, 2048, WHERE.name, kernels="mosaic")


@pytest.fixture(scope="module")
def found():
    return rank_training(ASKED, WHERE, compile_top=0)


def shardings(strategy, where=TWO_NODES):
    return {
        (str(way.mesh), "*".join(way.rules.table()["embed"]), way.gather,
         "*".join(way.rules.table("optimizer")["embed"]))
        for layout in layouts(strategy, where) for way in layout
    }  # fmt: skip


def test_weights_are_sharded_over_all_tokens_or_inside_nodes():
    assert shardings(data_parallel(16)) == {
        ("data=16", "", "layer", ""), ("data=16", "", "layer", "data"),
        ("data=16", "data", "layer", "data"), ("data=16", "data", "step", "data"),
        ("replica=2,data=8", "data", "layer", "data"),
        ("replica=2,data=8", "data", "layer", "data*replica"),
        ("replica=2,data=8", "data", "step", "data"),
        ("replica=2,data=8", "data", "step", "data*replica"),
    }  # fmt: skip


def test_shards_stay_inside_the_node_beside_other_axes():
    both = hybrid(data_parallel(4), ring_sequence(4))
    assert token_axes(both) == ("data", "seq")
    meshes = {mesh for mesh, embed, *_ in shardings(both) if embed == "data*seq"}
    assert meshes == {"data=4,seq=4", "replica=2,data=2,seq=4"}
    nodes = hybrid(data_parallel(2), ring_sequence(8))
    assert {e for m, e, *_ in shardings(nodes) if m == "data=2,seq=8"} == {"", "data*seq", "seq"}


def test_a_strategy_without_tokens_to_split_is_tried_as_it_is():
    assert shardings(tensor_pipeline(8, 1)) == {("tensor=8", "", "layer", "")}


def test_a_cut_axis_is_one_everywhere():
    """What the batch is split over while decoding is cut like the batch."""
    (way, *_) = [x.strategy for x in layouts(data_parallel(16), TWO_NODES)
                 if "replica" in x.strategy.mesh_axes]  # fmt: skip
    assert way.rules.table()["act_batch"] == ("replica", "data")
    assert way.rules.table("decode")["act_batch"] == ("replica", "data")


def test_stages_try_every_schedule_that_can_run():
    def names(layers, microbatches, period=1):
        found = (s.layers for s in schedules(layerwise(4), layers, microbatches, period))
        return {part.schedule for part in found if isinstance(part, Pipeline)}

    assert names(8, 8) == {"gpipe", "1f1b", "interleaved", "zb-h1", "1f1b-lockstep"}
    assert names(8, 6) == names(6, 8) == names(8, 8) - {"interleaved"}
    assert names(16, 8, 2) == names(8, 8)
    assert names(24, 8, 2) == names(8, 8) - {"interleaved"}
    assert list(schedules(data_parallel(4), 8, 8)) == [data_parallel(4)]


@pytest.mark.parametrize("limit", [None, 6e9])
def test_pruning_loses_nothing(limit, monkeypatch):
    """The first is the best of all choices of two strategies, each estimated on its own."""
    bases = [data_parallel(4), hybrid(data_parallel(2), layerwise(2))]
    monkeypatch.setattr("parallax.search.train_ranking.candidates", lambda *_: bases)
    usable = min(limit or WHERE.usable_bytes, WHERE.usable_bytes)
    best = float("inf")
    for base in bases:
        local = 16 // base.split().count("act_batch")
        for layout in layouts(base.replace(kernels="mosaic"), WHERE):
            for way in dict.fromkeys(layout):
                for m in doubling(local):
                    for strategy in schedules(way, MODEL.num_layers, m):
                        for remat in REMATS:
                            step = make_step(MODEL, strategy, Workload(16, 2048, m), "train", remat)
                            if train_memory(step.sharded, remat).total <= usable:
                                best = min(best, estimate(step, WHERE).cost.seconds)
    found = rank_training(replace(ASKED, max_bytes=limit), WHERE, compile_top=0)
    assert found.winner is not None
    assert found.winner.timing.step_s.value == pytest.approx(best, rel=2e-3)


def test_the_order_is_the_objective_s(found):
    able = [c.timing.step_s.value for c in found.ranked if c.fits]
    assert able == sorted(able)
    assert found.winner is found.ranked[0]
    assert all(c.why for c in found.ranked[1:])
    frugal = rank_training(replace(ASKED, objective="energy"), WHERE, compile_top=0)
    joules = [c.timing.energy_j.value for c in frugal.ranked if c.fits]
    assert joules == sorted(joules)
    assert joules[0] <= min(c.timing.energy_j.value for c in found.ranked if c.fits) * 1.0001


def test_figures_of_a_step_agree(found):
    first = found.ranked[0]
    t = first.timing
    assert t.tokens_per_s.value == pytest.approx(16 * 2048 / t.step_s.value)
    assert sum(t.terms_s.values()) == pytest.approx(t.step_s.value)
    assert sum(first.parts.values()) == pytest.approx(t.memory_bytes.value)
    assert 0.05 < t.mfu.value < 0.7
    assert t.step_s.low is not None
    assert t.step_s.low < t.step_s.value


def test_less_memory_recomputes_or_shards_more(found):
    first = found.ranked[0]
    limit = 0.6 * first.timing.memory_bytes.value
    held = rank_training(replace(ASKED, max_bytes=limit), WHERE, compile_top=0)
    assert held.winner is not None
    assert held.winner.timing.memory_bytes.value <= limit
    assert held.winner.timing.step_s.value >= first.timing.step_s.value
    assert any("does not fit" in c.why and "GB usable" in c.why for c in held.ranked)
    told = [c.kept_bytes[1] for c in held.ranked if c.fits and c.kept_bytes is not None]
    assert told
    assert min(told) > limit


def test_nothing_fits_is_said_with_how_much_is_missing():
    none = rank_training(replace(ASKED, max_bytes=1e6), WHERE, compile_top=0)
    assert none.winner is None
    assert all(not c.fits and c.remat == "layer" for c in none.ranked)
    least = [c.timing.memory_bytes.value for c in none.ranked]
    assert least == sorted(least)
    report = TrainPlanReport(none, WHERE, "MODEL")
    assert report.command() == ""
    assert "does not fit" in str(report)


def test_the_report_saves_the_strategy_and_says_how_to_train(tmp_path, found):
    report = TrainPlanReport(found, WHERE, "llama")
    paths = report.save(tmp_path)
    assert {p.name for p in paths} == {"plan.json", "plan.html", "strategy.json"}
    first = found.ranked[0]
    assert Strategy.load(tmp_path / "strategy.json") == first.strategy
    data = json.loads((tmp_path / "plan.json").read_text("utf-8"))
    assert data["phase"] == "train"
    assert data["candidates"][0]["remat"] == first.remat
    command = report.command(tmp_path)
    for flag in ("--model=llama", f"--strategy={tmp_path}/strategy.json", "--batch=16",
                 f"--microbatches={first.microbatches}", f"--remat={first.remat}"):  # fmt: skip
        assert flag in command
    text = str(report)
    assert first.strategy.name in text
    assert "Train as the first does" in text
    assert max(map(len, text.splitlines())) <= 120
    assert report.to_html().count("<svg") == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seq_len": None}, "--seq_len is missing: phase=train needs it"),
        ({"prompt_len": 128}, "prompt_len: the phase is train"),
        ({"max_tpot_s": 0.1}, "max_tpot_s: the phase is train"),
        ({"objective": "tpot"}, "objective 'tpot' is one of serving"),
        ({"max_memory": "much"}, "max_memory 'much': expected bytes"),
        ({"phase": "tune"}, "phase must be one of serve, train"),
        ({"phase": "serve", "prompt_len": 64}, "seq_len: the phase is serve"),
        ({"phase": "serve", "seq_len": None}, "--prompt_len is missing: phase=serve needs it"),
    ],
)
def test_bad_input_is_one_clear_error(changes, says):
    asked = {"phase": "train", "batch": 16, "seq_len": 2048, "cluster": WHERE, "compile_top": 0}
    with pytest.raises(ValueError, match=says):
        plan(MODEL, **(asked | changes))


def test_sizes_that_nothing_divides_name_the_flags():
    odd = MODEL.replace(num_layers=3, num_heads=5, num_kv_heads=5, d_ff=4095)
    says = "no strategy splits --batch=1 sequences of --seq_len=2047 .* --cluster=h100_1x4"
    with pytest.raises(ValueError, match=says):
        plan(odd, phase="train", batch=1, seq_len=2047, cluster=WHERE, compile_top=0)


def test_flags_of_the_other_phase_are_refused():
    line = ["plan", "--model=m", "--batch=4", "--seq_len=64"]
    with pytest.raises(ValueError, match="seq_len: the phase is serve"):
        read_flags(Flags, line)
    flags = read_flags(Flags, [*line, "--phase=train", "--max_memory=60GB"])
    assert flags.request.max_memory == "60GB"
    assert flags.request.compiled == 1
    with pytest.raises(ValueError, match="compression: the phase is train"):
        read_flags(Flags, [*line, "--phase=train", "--compression=int8"])


def test_px_plan_is_the_same_search(found):
    report = px.plan(
        MODEL, phase="train", batch=16, seq_len=2048, cluster=WHERE, kernels="mosaic",
        compile_top=0, max_memory="79GB",
    )  # fmt: skip
    assert isinstance(report, TrainPlanReport)
    assert report.search.request.max_bytes == 79e9
    assert report.search.ranked[0].strategy == found.ranked[0].strategy
