"""Lines of progress that count say how much time is left."""

import pytest

from parallax.experiments import launch, train


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [0.0]
    monkeypatch.setattr(launch.time, "monotonic", lambda: now[0])
    return now


def test_a_counting_line_has_the_time_left(clock, capsys):
    progress = launch.ProgressLines()
    for second, line in [
        (100, "verify: 1 of 4: one"), (110, "verify: 2 of 4: two"), (115, "no count"),
        (130, "verify: 4 of 4: four"), (200, "compile: 1 of 4: one"), (800, "compile: 2 of 4: two"),
    ]:  # fmt: skip
        clock[0] = second
        progress(line)
    assert capsys.readouterr().err.splitlines() == [
        "verify: 1 of 4: one",
        "verify: 2 of 4: two (about 30 s left)",
        "no count",
        "verify: 4 of 4: four (about 10 s left)",
        "compile: 1 of 4: one",
        "compile: 2 of 4: two (about 30 min left)",
    ]


def test_training_has_the_time_left(clock, capsys):
    figures = {"loss": 1.0, "grad_norm": 1.0, "tokens_per_s": 1.0}
    shown = train._Shown(40, 10)
    for done in range(11, 41):  # resumed
        clock[0] = 2.0 * done
        shown.step(done, figures)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("tokens/s")[2] for line in lines] == [
        "  about 40 s left", "  about 20 s left", "",
    ]  # fmt: skip
