"""Jobs beside each other, and cases dealt out to child processes."""

import os
import threading

import pytest

from parallax.lenses import children


def test_the_first_failure_keeps_waiting_jobs_from_starting(monkeypatch):
    ended, started = threading.Event(), []
    monkeypatch.setattr(children, "end_children", ended.set)

    def fail():
        raise ValueError("first")

    def run_until_ended():
        assert ended.wait(60)

    jobs = [fail, run_until_ended, run_until_ended, lambda: started.append("last")]
    with pytest.raises(ValueError, match="first"):
        children.run_beside(jobs)
    assert not started


def twice(case, factor, *, on_progress):
    on_progress(f"case {case}")
    return case * factor, os.getpid()


def refuse(case, *, on_progress):
    raise ValueError(f"not {case}")


def test_cases_are_dealt_out_in_turn_and_come_back_in_order():
    said = []
    found = children.each_in_children(twice, [5, 6, 7], 2, environment={}, on_progress=said.append)
    assert [value for value, _ in found] == [10, 12, 14]
    assert found[0][1] == found[2][1] != found[1][1]
    assert sorted(said) == ["1 of 3: case 5", "2 of 3: case 6", "3 of 3: case 7"]
    assert children.each_in_children(twice, [], 2, environment={}) == []


def test_a_case_that_fails_fails_as_it_would_alone():
    with pytest.raises(ValueError, match="not 5"):
        children.each_in_children(refuse, [5], environment={})
