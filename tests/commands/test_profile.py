"""Where the traces of a comparison go, and what they are asked with."""

import json
from pathlib import Path

import pytest

import parallax as px
from parallax.commands import compare as compare_command
from parallax.commands import comparing, devices_to_measure
from parallax.experiments import compare as compare_experiment
from parallax.experiments.flags import read_flags
from parallax.lenses.profiling import ProfileTask
from parallax.requests.compare import CompareRequest
from tests.report import examples

OWN = px.strategies.data_parallel(16).replace(name="../a strategy: x")


@pytest.fixture
def asked(monkeypatch):
    """The tasks of profiles that a comparison would run; the devices are CPUs."""
    tasks = []

    def instead(function, *args, environment, on_progress=None):
        if function.__name__ == "devices_at_hand":
            return "cpu", "cpu", 1
        tasks.append(args[5])
        return examples.measurement()

    for module in (comparing, devices_to_measure):
        monkeypatch.setattr(module, "run_on_devices", instead)
    return tasks


def test_each_strategy_has_a_folder(asked, tmp_path):
    report = px.compare(
        "ring_sp", strategies=["ring_sequence", OWN], lenses=["measure"], profile=tmp_path
    )
    assert [type(task) for task in asked] == [ProfileTask] * 2
    assert [task.folder for task in asked] == [
        str(tmp_path / "ring_sequence"), str(tmp_path / "_a_strategy__x"),
    ]  # fmt: skip
    assert {task.cluster.name for task in asked} == {"h100_2x8"}
    assert report.request["profile"] is True


def test_without_it_nothing_is_profiled(asked):
    px.compare("ring_sp", lenses=["measure"])
    assert asked
    assert set(asked) == {None}


def test_papers_have_folders_of_their_own(asked, tmp_path):
    px.compare_papers(["ring_sp"], strategies=["ring_sequence"], lenses=["measure"],
                      profile=tmp_path)  # fmt: skip
    assert [task.folder for task in asked] == [str(tmp_path / "ring_sp" / "ring_sequence")]


def test_the_command_puts_them_beside_the_report(asked, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["compare", "--paper=ring_sp", "--strategies=ring_sequence", "--lenses=measure",
             "--profile", f"--out={out}"]  # fmt: skip
    assert compare_experiment.main(read_flags(compare_experiment.Flags, flags)) == 0
    assert [Path(task.folder) for task in asked] == [out / "profile" / "ring_sequence"]
    assert json.loads((out / "report.json").read_text())["request"]["profile"] is True
    capsys.readouterr()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "x", "lenses": ["predict"]}, "profile: the measure lens, whose steps"),
        ({"profile": True, "lenses": ["measure"]}, "expected a folder for the traces, got True"),
    ],
)
def test_a_profile_of_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        px.compare("ring_sp", **changes)
    with pytest.raises(ValueError, match=message):
        px.compare_papers(["ring_sp"], **changes)


def test_rates_are_used_by_a_profile():
    request = CompareRequest(rates="a.json", lenses=("measure",), profile=True)
    assert "rates" not in request.unused()
    assert "rates" in request.replace(profile=False).unused()
    assert compare_command._folder(False) is None
