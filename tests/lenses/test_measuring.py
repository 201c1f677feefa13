"""The confidence interval is Student's, and one sample has none."""

import jax
import pytest

from parallax.lenses import measuring
from parallax.lenses.intervals import confidence_interval
from parallax.lenses.measuring import measure_prefill
from parallax.lenses.text import read_text
from parallax.strategies import data_parallel
from tests.strategies.cases import SMALL, workload

pytestmark = pytest.mark.slow


def test_interval_by_hand():
    figure = confidence_interval([1.0, 2.0, 3.0])
    assert figure.value == 2.0
    assert figure.low == pytest.approx(2 - 4.302653 / 3**0.5, rel=1e-6)
    assert figure.high == pytest.approx(2 + 4.302653 / 3**0.5, rel=1e-6)
    assert confidence_interval([1.0]).low is None


def test_warm_up_is_neither_timed_nor_counted(monkeypatch):
    """Two steps, the counter, three timed steps, the counter."""
    calls, used = [], iter([100.0, 130.0])

    def counter(devices):
        calls.append("counter")
        return next(used)

    monkeypatch.setattr(measuring, "read_energy", counter)
    monkeypatch.setattr(measuring, "LEAST_S", 0.0)
    mesh = data_parallel(1).mesh.build(jax.devices()[:1])
    found = measuring._measure(
        lambda: calls.append("step"), (), 3, "m", mesh, workload(data_parallel(1))
    )
    assert calls == ["step"] * 2 + ["counter"] + ["step"] * 3 + ["counter"]
    assert found.repeats == 3
    assert found.energy_j is not None
    assert found.energy_j.value == 10.0
    used = iter([100.0, 130.0])
    monkeypatch.setattr(measuring, "LEAST_S", 1.0)  # the counter is too coarse for three calls
    short = measuring._measure(lambda: None, (), 3, "m", mesh, workload(data_parallel(1)))
    assert short.energy_j is None


def test_measures_and_refuses_too_few_devices():
    run = workload(data_parallel(2))
    text = read_text(None, run.tokens)[0]
    config = SMALL.replace(dtype="float32")
    found = measure_prefill(config, data_parallel(2), run, text, 3)
    assert (found.devices, found.repeats) == (2, 3)
    assert found.step_s.value > 0
    assert found.energy_j is None  # CPUs count none
    with pytest.raises(ValueError, match="needs 32 devices, there are 16"):
        measure_prefill(config, data_parallel(32), run, text, 3)
