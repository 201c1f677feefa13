"""Explanations rendered: a terminal, a page that needs nothing else, plain data with tags."""

import dataclasses
import json
import re

import pytest
from rich.console import Console

from parallax.explanations.facts import ArraySplit
from parallax.report.explanation import WIDTH, Explanation
from tests.report import examples
from tests.report.test_html import Page


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A file of the user's, with characters that HTML has other uses for."""
    path = tmp_path_factory.mktemp("user") / "train.py"
    path.write_text("h = x @ w  # <i> & $c$\ny = h.sum()\n")
    return path


@pytest.fixture(scope="module")
def facts(source):
    return examples.explained(source)


@pytest.fixture(scope="module")
def said(facts):
    return str(Explanation(facts))


def test_it_starts_with_the_program_and_its_tags(said):
    head = " ".join(said.split("\n\n")[0].split())
    assert head == (
        "jit_step: 16 devices (h100_2x8, data=2,model=8); step 10.0 ms unvalidated (modelled, 80 % "
        "error bar 9.00 ms to 12.0 ms); memory 1.00 GB per device (compiled); sends 400 MB per "
        "device (compiled)"
    )


def test_it_says_where_memory_is_too_small(facts):
    large = Explanation(dataclasses.replace(facts, memory_bytes=109 * 10**9))
    text = " ".join(str(large).split())
    assert "memory 109 GB per device (compiled): more than the 78.1 GB usable;" in text


def test_a_finding_has_its_place_its_fix_and_its_saving(said):
    text = " ".join(said.split())
    assert "argument state" in text
    assert "costs 200 us, 2.0 % of the step" in text
    assert "250 MB, 25 % of memory" in text
    assert "(compiled; seconds modelled)" in text
    assert "train.py:1" in text
    assert "2.00 ms, 20 % of the step" in text
    assert "350 MB, 88 % of what is sent" in text
    assert "not tried" in text
    assert "-> shard state.mu by P(None," in text
    order = [text.index(x) for x in ("replicated argument", "sum in each", "full remat", "needed,")]
    assert order == sorted(order)


def test_needed_buffers_flops_splits_and_notes_are_there(said):
    rows = [" ".join(line.split()) for line in said.split("\n")]
    assert any(r.startswith("train.py:2 all-reduce over model: 2 (n - 1)/n") for r in rows)
    assert any("117 MB 4.00 ms 1.00 ms" in r for r in rows)
    assert "train.py:1 dot_general (f32) 71.3 MB" in rows
    assert "no line known - (f16) 4.10 kB" in rows
    assert "train.py:1 8.00 TFLOP 1.00 TFLOP 8.00" in rows
    assert "gone.py:7 1.00 GFLOP - -" in rows
    assert "w f32[2048, 8192] P(None, 'model') by you 2.0x 8.39 MB" in rows
    assert "state.mu f32[2048, 8192] replicated by you, donated 16x 67.1 MB" in rows
    assert "odd f32[6] P('?') by XLA 8.0x 12.0 B" in rows
    assert "result 0 f32[1024] one device's part 4.10 kB" in rows
    assert "2 further changes were not tried: 40 s are up" in rows
    assert max(map(len, said.split("\n"))) <= WIDTH


def test_no_findings_are_said_plainly(facts):
    nothing = Explanation(dataclasses.replace(facts, findings=()))
    assert "nothing found that helps; what is sent is needed" in str(nothing)
    assert "nothing found that helps; what is sent is needed" in nothing.to_html()
    left = Explanation(dataclasses.replace(facts, findings=(), untried=3))
    assert "nothing found that helps; 3 changes were not tried" in str(left)
    text = Explanation(dataclasses.replace(facts, findings=(), untried=None))
    assert "nothing found in the text, of which no change can be tried" in str(text)


def test_a_text_without_memory_says_so(facts):
    bare = Explanation(dataclasses.replace(facts, memory_bytes=0, high_s=None))
    text = " ".join(str(bare).split())
    assert "memory is not in the text" in text
    assert "80 % error bar from 9.00 ms" in text
    assert bare.to_dict()["memory"] is None


def test_plain_data_has_units_and_tags(facts):
    data = json.loads(json.dumps(Explanation(facts).to_dict()))
    assert data["explanation_version"] == 1
    assert data["step"] == {
        "value": 0.01, "unit": "s", "tag": "modelled", "low": 0.009, "high": 0.012
    }  # fmt: skip
    first, second, third = data["findings"]
    assert first["saving"]["memory"] == {"value": 250_000_000, "unit": "B", "tag": "compiled"}
    assert first["saving"]["seconds"]["tag"] == "modelled"
    assert second["where"]["code"].startswith("h = x @ w")
    assert second["where"]["line"] == 1
    assert third["saving"] is None
    assert data["flops"][2]["needed"] is None
    assert data["arguments"][1]["donated"]
    assert [e["lane"] for e in data["timeline"]] == ["compute", "communication", "compute"]

    def bare(value):
        """Numbers outside of quantities, but for settings and counts."""
        if isinstance(value, dict) and "unit" in value:
            return []
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(inner, str | None) or not hasattr(inner, "__iter__"):
            return [value] if isinstance(value, float) else []
        return [x for v in inner for x in bare(v)]

    assert bare(data) == []


def test_the_page_needs_nothing_else_and_escapes_code(facts):
    text = Explanation(facts).to_html()
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not re.search(r"https?:|@import", text)
    assert "h = x @ w  # <i> & $c$" in "".join(page.text)
    assert page.tags.count("svg") == 2
    joined = " ".join("".join(page.text).split())
    for words in ("replicated argument", "Schedule the whole program", "The mesh", "state.mu"):
        assert words in joined
    assert "train.py:1" in joined
    assert "data=1" in joined


def test_a_mesh_of_one_axis_or_none_is_drawn_or_left_out(facts):
    one = dataclasses.replace(
        facts, axes={"data": 16},
        arguments=(ArraySplit("x", "f32", (32,), (2,), (("data",),), "you", 8),),
    )  # fmt: skip
    assert "data=0" in Explanation(one).to_html()
    none = dataclasses.replace(facts, axes={}, arguments=(), timeline=())
    assert "<svg" not in Explanation(none).to_html()


def test_it_is_saved_and_shown(facts, tmp_path):
    explanation = Explanation(facts)
    names = sorted(path.name for path in explanation.save(tmp_path / "new"))
    assert names == ["explanation.json", "report.html"]
    saved = json.loads((tmp_path / "new" / "explanation.json").read_text())
    assert saved == json.loads(json.dumps(explanation.to_dict()))
    shown = explanation._repr_html_()
    assert shown.startswith("<style>")
    assert "</html>" not in shown
    assert repr(explanation) == ("<Explanation of jit_step: 3 findings; .table(), .save(folder)>")
    with (tmp_path / "out").open("w") as out:
        Console(width=WIDTH, file=out).print(explanation.table())
    assert "replicated argument" in (tmp_path / "out").read_text()
    assert explanation.findings[0].kind == "replicated argument"
    assert explanation.needed[0].count == 3
    assert explanation.notes
