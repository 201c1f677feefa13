"""Loading takes the memory of what devices hold; `benchmarks/loading.py` has the 1 GB folder."""

import importlib
from pathlib import Path

import pytest

from parallax.lenses.child import run_in_child
from parallax.lenses.environment import cpu_environment

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_peak_of_loading_and_of_saving(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # a child process finds it as we do
    loading = importlib.import_module("loading")
    config = loading.model(gb=0.1)
    size = loading.make_folder(str(tmp_path), config, on_progress=None)
    assert size == 2 * config.num_params
    found = run_in_child(
        loading.load_one, str(tmp_path), "tensor_pipeline", "stage=2,tensor=8",
        environment=cpu_environment(16),
    )  # fmt: skip
    assert size <= found["placed_bytes"] <= 1.2 * size
    assert found["peak_bytes"] <= 1.2 * found["placed_bytes"]
    assert found["saving_peak_bytes"] < size  # one tensor at a time, and compiled slices
