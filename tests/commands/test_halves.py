"""The verifications of four strategies run in two children, whose results are put together."""

import pytest

from parallax.commands import comparing
from parallax.commands.resolve import resolve
from parallax.requests.compare import CompareRequest


@pytest.mark.parametrize(
    ("strategies", "parts"),
    [(("ring_sequence", "data_parallel"), 1), (None, 2)],  # the paper's four
)
def test_all_strategies_are_verified_once(monkeypatch, strategies, parts):
    verified = []

    def child(function, task, **_):
        verified.extend(strategy.name for strategy, _ in task.cases)
        return [f"of {strategy.name}" for strategy, _ in task.cases]

    monkeypatch.setattr(comparing, "run_in_child", child)
    found = resolve(CompareRequest(paper="ring_sp", strategies=strategies))
    run = comparing._Run(found)
    jobs = comparing._verifications(run, lambda line: None)
    assert len(jobs) == parts
    for job in jobs:
        job()
    assert tuple(verified) == found.names
    assert run.values == {name: {"verification": f"of {name}"} for name in found.names}
