"""Notebooks run from top to bottom on virtual devices, and are committed without outputs."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

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
    assert len(notebook.cells) <= 13  # a dozen, and the cell that installs
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_the_second_cell_installs_and_is_the_same_everywhere(path):
    assert install_cell(path) == install_cell(COLAB / "tour.ipynb")
    assert "import parallax as px" in nbformat.read(path, as_version=4).cells[2].source


@pytest.mark.parametrize(
    ("present", "source", "asked"),
    [
        (("parallax",), None, []),
        ((), None, ["parallax-sharding[aot]"]),
        (("jax_cuda12_plugin",), None, ["parallax-sharding[cuda12]"]),
        (("jax_cuda13_plugin",), "some/parallax.whl", ["some/parallax.whl[cuda13]"]),
    ],
)
def test_what_the_cell_installs(present, source, asked, monkeypatch):
    commands = install(monkeypatch, present, source, running="1", installed="1")
    assert [command[-1] for command in commands] == asked
    assert all(c[:4] == [sys.executable, "-m", "pip", "install"] for c in commands)


def test_another_jax_than_the_one_imported_asks_for_a_restart(monkeypatch):
    with pytest.raises(SystemExit, match="Restart the session"):
        install(monkeypatch, (), None, running="1", installed="2")


def install_cell(path):
    return nbformat.read(path, as_version=4).cells[1].source


def install(monkeypatch, present, source, running, installed):
    """Runs the install cell where only `present` is found; the commands that it starts."""
    commands = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in present else None)
    monkeypatch.setattr("importlib.metadata.version", lambda name: installed)
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(__version__=running))
    monkeypatch.delenv("PARALLAX_SOURCE", raising=False)
    if source is not None:
        monkeypatch.setenv("PARALLAX_SOURCE", source)
    exec(install_cell(COLAB / "tour.ipynb"), {})
    return commands


@pytest.fixture
def run(aot, monkeypatch, tmp_path):
    """Executes a notebook in an empty folder; what each code cell after the first showed."""
    monkeypatch.setenv("PYTHONPATH", str(COLAB.parent))
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):  # what the test session set
        monkeypatch.delenv(name, raising=False)

    def execute(name):
        notebook = nbformat.read(COLAB / name, as_version=4)
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
        return [text_of(c) for c in notebook.cells[2:] if c.cell_type == "code"]

    return execute


def figures(pattern, text):
    return [float(x) for x in re.findall(pattern, text)]


@pytest.mark.full
@pytest.mark.filterwarnings("default")  # the kernel client's own, not ours
def test_tour(run):
    shown = run("tour.ipynb")
    assert "tensor_pipeline" in shown[1]
    assert "P('stage', None, 'tensor')" in shown[2]
    assert "CPU" in shown[2]  # shardings are drawn
    difference = float(shown[3].split(":")[1])
    assert 0 <= difference < 1e-5
    assert "Exact?" in shown[4]
    assert "compile: 2 of 2: ring_sp.small: ring_sequence" in shown[4]
    assert "verify: ring_sp.small: 4 of 4: ring_sequence in float16" in shown[4]
    assert "exact: True" in shown[5]
    assert "collective-permute ('seq',)" in shown[5]
    for family in ("llama", "mixtral"):
        assert re.search(rf"{family} \S+ \S+=.* TPOT 0\.0", shown[5]), family


@pytest.mark.full
@pytest.mark.filterwarnings("default")
def test_own_model(run):
    shown = run("own_model.ipynb")
    assert shown[1].count("exact: True") == 2
    assert "all-reduce over ('tensor',)" in shown[2]
    assert shown[2].count("fits: True") == 2
    assert shown[3].count("modelled; roofline") == 2
    for predicted, low, high in zip(
        *(figures(p, shown[3]) for p in (r": (\S+) ms, ", r" ms, (\d\S+) to", r" to (\S+)")),
        strict=True,
    ):
        assert low < predicted < high
    assert "Mixer at the small size on 16 x cpu" in shown[3]
    assert "(measured; n=5" in shown[3]
    assert "unknown logical axis 'rank'" in shown[4]
    assert "8 does not divide 250" in shown[4]
    assert "all-reduce" in shown[5]


@pytest.mark.full
@pytest.mark.filterwarnings("default")
def test_ring_in_your_code(run):
    shown = run("ring_in_your_code.ipynb")
    errors = figures(r"relative error: (\S+)", shown[2] + shown[3])
    assert len(errors) == 5
    assert max(errors) < 1e-11
    assert "image/png" in shown[4] or len(shown[4]) > 1000
    natural, zigzag = (figures(r"(\d\.\d{3})", x) for x in shown[4].split("zigzag, MFLOP"))
    assert natural[7] / natural[0] == pytest.approx(7.525 / 0.525, rel=1e-2)
    assert len(zigzag[:8]) == 8
    assert len(set(zigzag[:8])) == 1
    assert "busiest device on nic" in shown[5]
    assert "14 times" in shown[5]
    assert "collective-permute over ('seq',)" in shown[5]


@pytest.mark.full
@pytest.mark.filterwarnings("default")
def test_why(run):
    shown = run("why.ipynb")
    assert "jit_step: 8 devices" in shown[1]
    assert "<svg" in shown[1]
    for kind in ("replicated argument", "no constraint", "not donated"):
        assert kind in shown[2]
    before, after = figures(r"computed (\S+) times", shown[3])
    assert (before, after) == (4.0, 1.0)
    constrained, split, donated = figures(r"memory (\S+) GB", shown[4])
    assert donated < split < constrained
    assert "2 (n - 1)/n" in shown[5]
