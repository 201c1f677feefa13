"""The committed page of assumptions is the one the data gives."""

from pathlib import Path

from parallax.papers import PAPERS
from parallax.studies.assumptions_page import assumptions_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "generated" / "assumptions.md"


def test_the_committed_page_is_current():
    fix = "python -m parallax.studies.assumptions_page docs/generated/assumptions.md"
    assert PAGE.read_text(encoding="utf-8") == assumptions_markdown(), f"run: {fix}"


def test_every_assumption_is_on_the_page():
    page = assumptions_markdown()
    for paper in PAPERS.values():
        assert all(f"| {a.name} | {a.value} |" in page for a in paper.assumptions)
