"""The committed page of assumptions is the one the data gives."""

from pathlib import Path

from parallax.papers import PAPERS
from parallax.papers.assumptions import assumptions_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "assumptions.md"


def test_the_committed_page_is_current():
    fix = "python -m parallax.papers.assumptions docs/assumptions.md"
    assert PAGE.read_text(encoding="utf-8") == assumptions_markdown(), f"run: {fix}"


def test_every_assumption_is_on_the_page():
    page = assumptions_markdown()
    for paper in PAPERS.values():
        assert all(f"| {a.name} | {a.value} |" in page for a in paper.assumptions)
