"""Notebooks run from top to bottom on virtual devices, and are committed without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

COLAB = Path(__file__).resolve().parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))


def text_of(cell):
    """Everything a cell printed or showed, as text."""
    out = []
    for output in cell.get("outputs", []):
        out.append(output.get("text", ""))
        out += [str(v) for v in output.get("data", {}).values()]
    return "\n".join(out)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_committed_without_outputs_and_short(path):
    notebook = nbformat.read(path, as_version=4)
    assert len(notebook.cells) <= 12
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.filterwarnings("default")  # the kernel client's own, not ours
def test_tour(aot, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(COLAB.parent))
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):  # what the test session set
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.read(COLAB / "tour.ipynb", as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    shown = [text_of(c) for c in notebook.cells if c.cell_type == "code"]
    assert "tensor_pipeline" in shown[1]
    assert "P('stage', None, 'tensor')" in shown[2]
    assert "CPU" in shown[2]  # shardings are drawn
    difference = float(shown[3].split(":")[1])
    assert 0 <= difference < 1e-5
    assert "Exact?" in shown[4]
    assert "exact: True" in shown[5]
    assert "collective-permute ('seq',)" in shown[5]
