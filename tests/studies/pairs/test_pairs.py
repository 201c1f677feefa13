"""Two strategies in pairs: what is run, what is said, and what is refused."""

import io

import pytest
from rich.console import Console

from parallax.lenses.text import read_text
from parallax.strategies import data_parallel, layerwise
from parallax.studies.pairs.paired_runs import PairedRuns, measure_pairs, paired_ratio
from parallax.studies.pairs.pairs import VIRTUAL, PairsReport, compare_pairs
from tests.strategies.cases import SMALL, workload


def said(first, second, virtual=False):
    runs = PairedRuns(
        tuple(first), tuple(second), (True,) * len(first), paired_ratio(first, second)
    )
    work = workload(data_parallel(2))
    report = PairsReport(("a", "b"), "model", (work, work), "gpu", virtual, runs)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table())
    return console.export_text(), report.to_dict()


def test_the_verdict_turns_with_the_times():
    slow, fast = (2.0, 2.2, 2.1), (1.0, 1.1, 1.05)
    assert "b / a: 0.500" in said(slow, fast)[0]
    assert "b is faster" in said(slow, fast)[0]
    assert "a is faster" in said(fast, slow)[0]
    assert "not decided" in said((1.0, 2.0), (2.0, 1.0))[0]


def test_threads_of_a_cpu_call_nobody_faster():
    text, data = said((2.0, 2.1), (1.0, 1.05), virtual=True)
    assert "faster" not in text
    assert VIRTUAL.split(",")[0] in text
    assert data["virtual"] is True
    assert data["first_s"] == [2.0, 2.1]
    assert data["ratio"]["tag"] == "measured"


@pytest.mark.slow
def test_two_strategies_run_here():
    config = SMALL.replace(dtype="float32")
    strategies = data_parallel(2), layerwise(2)
    work = workload(strategies[0]), workload(strategies[1])
    text = read_text(None, max(w.tokens for w in work))[0]
    runs, device, notes = measure_pairs(config, strategies, work, text, 4)
    assert device == "cpu"
    assert notes == runs.first_processes == runs.second_processes == ()
    assert len(runs.first_s) == len(runs.second_s) == 4
    assert sum(runs.first_ran_first) == 2
    assert min(*runs.first_s, *runs.second_s) > 0


@pytest.mark.parametrize(
    ("asked", "why"),
    [({"strategies": ["layerwise"]}, "expected two strategies, got 1"), ({}, "got none"),
     ({"paper": "ring_sp", "pairs": 1}, "at least 2, got 1"),
     ({"paper": "none"}, "unknown paper")],
)  # fmt: skip
def test_bad_input(asked, why):
    with pytest.raises(ValueError, match=why):
        compare_pairs(**asked)


def test_an_argument_that_changes_nothing_is_none():
    with pytest.raises(TypeError, match="phase"):
        compare_pairs("ring_sp", phase="decode")  # pyright: ignore[reportCallIssue]
