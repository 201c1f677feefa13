"""A training comparison says how each strategy trains, in every form of the report."""

import copy
import json
from dataclasses import replace

import jsonschema
import pytest

from parallax.parallel.schedules import make_schedule
from parallax.report.schedule_picture import is_small, schedule_caption, schedule_svg
from parallax.results.training_facts import TrainingFacts
from tests.report import examples
from tests.report.test_table import printed
from tests.report.test_to_dict import SCHEMA, bare_numbers

KNOB = "by closed form it fits with --remat=layer (34 GB), or --microbatches=32 (21 GB)"
FSDP = TrainingFacts(("data", "seq"), "layer", ("data", "seq"), "attention", 4, None, 2e9, 4e9, 3e9)
SCHEDULE = make_schedule("interleaved", 2, 8, 2)
PIPELINED = TrainingFacts((), "layer", ("data",), "layer", 8, SCHEDULE, 1e9, 2e9, 1e9)


def trained(first=FSDP, second=PIPELINED):
    big = examples.compilation(memory=examples.too_big(), phase="train")
    return examples.report(
        paper=None,
        results=(
            examples.ring_result(
                training=first, compilation=examples.compilation(phase="train")
            ),
            examples.tensor_result(training=second, compilation=big, knob=KNOB),
        ),
    )  # fmt: skip


def squeezed(text):
    return " ".join(text.split())


def row(text, label):
    (line,) = [line for line in text.splitlines() if line.strip().startswith(label)]
    return squeezed(line)


def test_the_table_has_the_choices_and_the_known_memory():
    text = printed(trained())
    assert (
        row(text, "weights sharded over") == "weights sharded over derived data x seq not sharded"
    )
    assert row(text, "weights gathered") == "weights gathered derived by each layer -"
    assert row(text, "optimizer sharded") == "optimizer sharded over derived data x seq data"
    wanted = "pipeline schedule derived - interleaved, 2 x 2 stages"
    assert row(text, "pipeline schedule") == wanted
    assert (
        row(text, "peak in flight")
        == f"peak in flight derived - {SCHEDULE.peak_in_flight} chunks of layers"
    )
    assert row(text, "rematerialisation") == "rematerialisation derived attention layer"
    assert row(text, "microbatches") == "microbatches derived 4 8"
    assert (
        row(text, "of which optimizer state") == "of which optimizer state derived 4.00 GB 2.00 GB"
    )
    assert row(text, "of which gradients") == "of which gradients derived 3.00 GB 1.00 GB"
    # 9.8 GB and 91 GB in all, of which 9 GB and 4 GB are known.
    rest = "activations and the rest compiled 800 MB 87.0 GB"
    assert row(text, "activations and the rest") == rest


def test_other_phases_have_none_of_it():
    text, data = printed(examples.report()), examples.report().to_dict()
    assert "sharded over" not in text
    assert "Pipeline schedules" not in text + examples.report().html()
    assert data["results"][0]["training"] is None


def test_what_does_not_fit_names_its_knob():
    report = trained()
    last = squeezed(printed(report).split("FAILED:")[1])
    assert KNOB in last
    assert KNOB in report.html()
    assert KNOB in report.to_dict()["failures"][0]


def test_the_data_has_it_with_units_and_tags():
    data = json.loads(trained().to_json())
    jsonschema.validate(data, SCHEMA)
    assert list(bare_numbers(data)) == []
    first, second = (r["training"] for r in data["results"])
    assert first["weights"] == ["data", "seq"]
    assert first["schedule"] is None
    assert first["memory"]["rest"] == {
        "value": pytest.approx(0.8e9),
        "unit": "B",
        "tag": "compiled",
    }
    assert second["schedule"]["name"] == "interleaved"
    assert second["schedule"]["bubble"]["value"] == SCHEDULE.bubble
    assert second["knob"] == data["results"][1]["knob"] == KNOB


def test_reports_of_older_versions_follow_the_schema():
    old = copy.deepcopy(json.loads(trained().to_json()))
    for result in old["results"]:
        del result["training"]
    jsonschema.validate(old, SCHEMA)


def test_pipelines_are_drawn_on_the_page_and_small_ones_on_the_terminal():
    report = trained()
    assert report.html().count("<figcaption>tensor_pipeline: interleaved: 2 stages") == 1
    text = printed(report)
    assert "Pipeline schedules (derived)" in text
    long = replace(PIPELINED, schedule=make_schedule("1f1b", 4, 64))
    assert "stage 1 " not in printed(trained(second=long))
    small = replace(PIPELINED, schedule=make_schedule("1f1b", 2, 4))
    assert "stage 1  .  F0 B0 F1 B1" in printed(trained(second=small))


def test_a_text_that_a_terminal_would_wrap_is_not_small():
    assert is_small(make_schedule("1f1b", 4, 8))
    assert len(make_schedule("interleaved", 2, 6, 2).rows) <= 26
    assert not is_small(make_schedule("interleaved", 2, 6, 2))
    assert not is_small(make_schedule("1f1b", 16, 4))


def test_of_a_long_table_both_ends_are_drawn():
    long = make_schedule("1f1b", 16, 256)
    caption, picture = schedule_caption(long), schedule_svg(long)
    assert f"of {long.ticks:,} ticks the first and last 60 are drawn" in caption
    assert caption.startswith("1f1b: 16 stages")
    assert len(picture) < 400_000
    assert f">{long.ticks - 60:,}<" in picture
    assert "are drawn" not in schedule_caption(make_schedule("1f1b", 4, 16))
