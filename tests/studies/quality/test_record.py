"""The record's file: what was written is read, and nothing else."""

import copy
import json
import math
from pathlib import Path

import pytest

from parallax.results.lens_results import Figure
from parallax.studies.quality.results import MatrixError, Race, Run, Score, load_record
from parallax.studies.quality.sentences import CANNOT, sentences

ROOT = Path(__file__).resolve().parents[3]
EXACT = Figure(0.0, "%", "measured", 0.0, 0.0)


def score(label, tuned, increase):
    some = Figure(0.5, "1", "measured", 0.4, 0.6)
    return Score(label, ("int8", "int8+2:4"), tuned, Figure(10, "B", "derived"), some, some,
                 increase, some, EXACT, some, some, Figure(0.1, "1", "measured"))  # fmt: skip


DATA = {
    "schema_version": 1, "date": "2026-01-01T00:00Z", "command": "parallax compress_quality",
    "versions": {"jax": "0.12"}, "seconds": 1.0, "model": {"num_layers": 1},
    "settings": {"steps": 1.0},
    "text": {"name": "t", "sha256": "0", "train_bytes": 9, "validation_bytes": 9, "windows": 2,
             "window_bytes": 4},
    "chance": 0.25, "items": 4,
    "scores": [
        {"label": "int8", "formats": ["int8", "int8"], "tuned": False, **{
            name: {"value": 1.0, "unit": "1", "tag": "measured", "low": 0.5, "high": 1.5,
                   "note": ""}
            for name in ("layer_bytes", "bits_per_byte", "perplexity", "increase", "accuracy",
                         "accuracy_change", "next_byte", "agreement", "logits_error")}}
    ],
    "race": None,
    "errors": [{"weights": "normal", "layer": None, "matrix": "mlp", "shape": [4, 4],
                "format": "int8", "error": 0.005}],
    "sensitivities": [], "mixes": [], "says": ["a"],
}  # fmt: skip


NULL = object()
INCREASE = "scores", 0, "increase"


def changed(*path, to):
    data = copy.deepcopy(DATA)
    at = data
    for step in path[:-1]:
        at = at[step]
    if to is None:
        del at[path[-1]]
    else:
        at[path[-1]] = None if to is NULL else to
    return data


def test_it_comes_back(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(DATA))
    record = load_record(tmp_path / "r.json")
    assert json.loads(record.to_json()) == DATA
    assert record.score("int8").perplexity.high == 1.5
    assert record.errors[0].shape == (4, 4)


DAMAGED = {
    "another version": (
        changed("schema_version", to=2),
        "schema_version is 2, .* reads 1",
    ),
    "no object": ([1], "expected an object with fields, got list"),
    "a field is gone": (changed("items", to=None), r"missing fields \['items'\]"),
    "a field too many": (changed("more", to=1), r"unknown fields \['more'\]"),
    "text for a number": (changed("chance", to="0.25"), "chance: expected float"),
    "true for a number": (changed("items", to=True), "items: expected int"),
    "not finite": (
        changed("scores", 0, "increase", "value", to=math.nan),
        "expected float, finite",
    ),
    "an interval beside": (
        changed("scores", 0, "increase", "low", to=1.2),
        "is no interval of 1.0",
    ),
    "half an interval": (changed("scores", 0, "increase", "low", to=None), "fields"),
    "an unknown tag": (
        changed("scores", 0, "increase", "tag", to="guessed"),
        "tag: expected one of claimed, .*; got 'guessed'",
    ),
    "three formats": (changed("scores", 0, "formats", to=["a", "b", "c"]), "expected 2 values"),
    "an object for a list": (changed("errors", to={}), "expected a list"),
    "a list for an object": (changed("versions", to=[]), "expected an object"),
    "nothing measured": (changed("scores", to=[]), "no scores"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_records_are_refused(name, tmp_path):
    data, says = DAMAGED[name]
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=says):
        load_record(tmp_path / "r.json")


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        load_record(tmp_path / "none.json")
    (tmp_path / "r.json").write_text(json.dumps(DATA)[:-20])
    with pytest.raises(ValueError, match="not JSON"):
        load_record(tmp_path / "r.json")
    (tmp_path / "r.json").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match="not JSON"):
        load_record(tmp_path / "r.json")


def test_sentences_follow_the_figures():
    def said(increase):
        return sentences([score("paper's", False, increase)], None, ())

    assert said(EXACT)[0] == CANNOT
    assert "below 0.1 %" in said(Figure(0.01, "%", "measured", 0.0, 0.05))[1]
    assert "above 0.1 %" in said(Figure(5.0, "%", "measured", 4.0, 6.0))[1]
    assert "not told apart from 0.1 %" in said(Figure(0.1, "%", "measured", -1.0, 1.0))[1]
    run = Run(0, (1,), (1.0,), (1.0,), 1.0, 1.0)
    race = Race(
        ("int8", "int8+2:4"), 1.0, (run,), Figure(1.5, "1", "measured", 1.2, 1.8, "3 seeds")
    )
    errors = [MatrixError("trained", 0, "up_DF", (4, 4), "int8", e) for e in (0.001, 0.02)]
    lines = sentences([], race, errors)
    assert "1.50 [1.20, 1.80] times the steps (3 seeds); the interval does not hold 1." in lines[1]
    assert "2.00e-02" in lines[2]


def test_the_committed_record_says_what_its_figures_say():
    """INT8 within a hundredth on every trained matrix and every full-size shape; rows that store
    the same bytes with more bits do no worse; its sentences are what the code writes today."""
    record = load_record(ROOT / "benchmarks" / "cpu" / "compress_quality.json")
    int8 = [e.error for e in record.errors if e.format == "int8"]
    assert len(int8) == 7 * record.model["num_layers"] + 3
    assert max(int8) <= 1e-2
    assert sentences(record.scores, record.race, record.errors) == record.says
    for tuned in (False, True):
        nats = [record.score(x, tuned).perplexity.value for x in ("float16", "int4", "int4+2:4")]
        assert nats == sorted(nats)
    task = record.score("float16").accuracy
    assert task.low is not None
    assert task.low > record.chance
    for mix in record.mixes:
        assert (mix.n_bytes <= mix.budget_bytes) == bool(mix.formats)
