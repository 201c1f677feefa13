"""Sections of layer-wise papers: there for them and for a budget, in every form of the report."""

import json
import re
from html import escape

import pytest

from parallax.meshes.cluster import cluster
from parallax.papers.placing import check_budget, placement_facts
from parallax.report import words
from parallax.report.sections import sections
from parallax.workload import Workload
from tests.report import examples
from tests.report.test_table import printed


def of_paper(name, **request):
    paper = examples.paper(name)
    return examples.report(
        paper=paper, config=paper.config, workload=paper.workload, request=request
    )


@pytest.fixture(scope="module")
def report():
    return of_paper("compressed_layerwise")


def test_layer_wise_papers_have_them_and_others_with_a_budget(report):
    assert [s.title for s in sections(report)][:2] == [
        "Placement", "One layer per device, from 8 to 64",
    ]  # fmt: skip
    assert sections(of_paper("ring_sp")) == ()
    (only,) = sections(of_paper("ring_sp", budget="50MB"))
    assert only.title == "Placement"
    assert {row[0].text for row in only.grids[1].rows} == {"50MB"}


def test_a_run_s_own_model_and_workload_are_placed():
    """Keys and values of ring_sp's batch fill a device many times; of one sequence they do not."""
    paper = examples.paper("ring_sp")
    (found,) = sections(of_paper("ring_sp", budget="hbm+kv"))
    dense = placement_facts(paper, "hbm+kv").placed[0]
    assert f"no, {words.in_bytes(dense.largest.over)} over" in found.grids[1].rows[0][4].text
    few = examples.report(
        paper=paper, config=paper.config, workload=Workload(1, 1000, 1),
        request={"budget": "hbm+kv"},
    )  # fmt: skip
    assert sections(few)[0].grids[1].rows[0][4].text == "yes"
    # Another size than the paper's has no figures of the paper's beside it.
    layerwise = examples.paper("compressed_layerwise")
    small = examples.report(
        paper=layerwise, config=layerwise.config.small(), workload=layerwise.workload
    )
    assert {row[3].text for row in sections(small)[0].grids[0].rows} == {"-"}


def test_they_are_in_every_form(report):
    text, page = " ".join(printed(report).split()), report.html()
    data = json.loads(report.to_json())
    for section, stored in zip(sections(report), data["sections"], strict=True):
        assert section.title in text
        assert f"<h2>{section.title}</h2>" in page
        for line in section.said:
            assert " ".join(line.split()) in text
        for grid, table in zip(section.grids, stored["tables"], strict=True):
            assert escape(grid.title) in page
            assert [[c.text for c in row] for row in grid.rows] == table["rows"]
    assert max(map(len, printed(report).splitlines())) <= 100


def test_sentences_are_the_tables(report):
    placement, scale = sections(report)[:2]
    facts = placement_facts(examples.paper("compressed_layerwise"))
    apart = [row for row in facts.footprints if row.verdict == "differs"]
    assert f"{len(apart)} do not (derived)" in placement.said[0]
    assert sum(line.startswith("l2: ") for line in placement.said) == 2
    assert "16 layers" in scale.said[0]


@pytest.mark.parametrize("budget", ["0", "l3", "0.2", "-1", "l2+hbm"])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ValueError, match=re.escape(f"budget {budget!r}")):
        check_budget(budget, cluster("h100_2x8"))
