"""Every line of a paper with a digit is a claim's or part of the setup, and says that number."""

import os
import re
from pathlib import Path

import pytest

from parallax.papers import PAPERS
from parallax.papers.numbers import last_digit_of, numbers_in, value_of

FOLDER = Path(
    os.environ.get("PARALLAX_PAPERS")
    or Path(__file__).resolve().parents[2].parent / "shared" / "papers"
)


@pytest.fixture(params=PAPERS)
def text(request):
    """(paper, its lines); the papers' sentences are not in the repository."""
    file = FOLDER / f"{request.param}.txt"
    if not file.is_file():
        pytest.skip(f"the papers' text is not at {FOLDER}: set PARALLAX_PAPERS to its folder")
    return PAPERS[request.param], file.read_text(encoding="utf-8").splitlines()


def test_every_line_with_a_digit_is_covered(text):
    paper, lines = text
    with_digit = {i for i, line in enumerate(lines, 1) if re.search(r"\d", line)}
    known = {i for c in paper.claims for i in c.lines} | {s.line for s in paper.setup}
    assert with_digit == known
    assert len({s.line for s in paper.setup}) == len(paper.setup)


def test_every_figure_is_on_its_lines(text):
    paper, lines = text
    absent = [
        (what, line)
        for what, value, places in (
            *((c.quantity, c.value, c.lines) for c in paper.claims),
            *((s.what, s.value, (s.line,)) for s in paper.setup if s.value is not None),
        )
        for line in places
        if value not in numbers_in(lines[line - 1])
    ]
    assert not absent


def test_every_result_row_is_audited_number_by_number(text):
    """Rows of result tables: no number beside the claims but sizes of the experiment."""
    paper, lines = text
    sizes = {1.0, 2.0, 4.0, 8.0, 16.0}
    rows = [i for i, line in enumerate(lines, 1) if re.match(r"\| [^|]*\|.*\d", line)]
    assert rows
    for row in rows:
        values = {c.value for c in paper.claims if row in c.lines}
        # "1.20M" is a number as printed too.
        bare = {value_of(c.printed.rstrip("kKM")) for c in paper.claims if row in c.lines}
        assert numbers_in(lines[row - 1]) <= values | bare | sizes, row


def test_setup_agrees_with_what_runs():
    for paper in PAPERS.values():
        config, work = paper.config, paper.workload
        is_so = {
            "batch": work.batch, "length": work.seq_len, "layers": config.num_layers,
            "heads": config.num_heads, "head dimension": config.head_dim, "width": config.d_model,
            "MLP width": config.d_ff, "GPUs": 16, "devices": 16, "microbatches": 8,
            "experts of a layer": config.num_experts, "tokens of a batch": work.tokens,
        }  # fmt: skip
        for s in paper.setup:
            if s.what in is_so:
                assert s.value == is_so[s.what], (paper.name, s)


@pytest.mark.parametrize(
    ("printed", "value", "digit"),
    [("1.20M", 1.2e6, 1e4), ("12,800", 12_800, 1), ("0.078", 0.078, 1e-3), ("16k", 16_000, 1e3)],
)
def test_printed_numbers(printed, value, digit):
    assert value_of(printed) == value
    assert last_digit_of(printed) == pytest.approx(digit, rel=1e-12)
    assert value in numbers_in(f"from {printed} tokens")


def test_words_are_not_numbers():
    assert numbers_in("FP16, H100, d_h and 2B each, 50MB in 0.065ms") == {2.0, 50.0, 0.065}
    for text in ("", "1.2.3", "-4", "1,20", "5 %", "nan"):
        with pytest.raises(ValueError, match="printed number"):
            value_of(text)
