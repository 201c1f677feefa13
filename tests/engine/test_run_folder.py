"""A run's folder: held by one run, its files whole whenever a run is killed or the disk is full."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import parallax as px
from parallax.engine import run_folder
from parallax.engine.checkpoint_files import complete_steps, remove_leftovers, write_checksums
from parallax.engine.metrics import Metrics
from parallax.engine.run_folder import held, write_run

HOLDER = """
import sys, time
from pathlib import Path
from parallax.engine.run_folder import held
with held(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(100)
"""


def silent(line):
    raise AssertionError(line)


def test_a_second_run_is_refused_and_a_killed_one_frees_the_folder(tmp_path):
    root = Path(__file__).resolve().parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        said = rf"process {holder.pid} on \S+ since 2\S+ \S+ trains in it\. Use another --workdir"
        with pytest.raises(ValueError, match=said), held(tmp_path, silent):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / ".lock").is_file()  # its text is all that is left
    lines = []
    with held(tmp_path, lines.append):
        pass
    (line,) = lines
    assert f"taken over from process {holder.pid} on " in line
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path, silent):
        pass


def test_the_lock_of_a_host_that_went_down_is_awaited(tmp_path, monkeypatch):
    (tmp_path / ".lock").write_text("process 7 on a-node-that-went-down since yesterday")
    tries = []

    def held_twice(file, how):
        tries.append(how)
        if len(tries) < 3:
            raise BlockingIOError

    monkeypatch.setattr(run_folder.fcntl, "flock", held_twice)
    monkeypatch.setattr(run_folder.time, "sleep", lambda seconds: None)
    said = []
    with held(tmp_path, said.append):
        assert len(tries) == 3
    assert len(said) == 2
    assert "process 7 on a-node-that-went-down since yesterday holds it. Waiting 120 s" in said[0]
    assert "taken over from process 7 on a-node-that-went-down" in said[1]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", no_locks)
    said = []
    with held(tmp_path, said.append):
        assert len(said) == 1
    assert "its file system has no locks (No locks available)" in said[0]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="workdir .*file/run: Not a directory"), held(
        tmp_path / "file" / "run", silent
    ):  # fmt: skip
        pass


def test_a_torn_line_of_metrics_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    for torn in ('{"step": 4, "lo', "\0\0\0", '{"step": 4}}', "4"):
        path.write_text("\n".join([*whole, torn]))
        with Metrics(tmp_path, 2) as metrics:
            metrics.write(3, {"loss": 0.5})
        found = [json.loads(line) for line in path.read_text().splitlines()]
        assert [x["step"] for x in found] == [1, 2, 3]
        assert found[-1]["loss"] == 0.5


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_run_json_stays_whole_on_a_full_disk(tmp_path, monkeypatch):
    write_run(tmp_path, {"steps": 1})
    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ValueError, match=r"run\.json: No space left on device"):
        write_run(tmp_path, {"steps": 2})
    assert json.loads((tmp_path / "run.json").read_text()) == {"steps": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_workdir_that_cannot_be_made_is_refused_before_the_data_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file" / "run", "/proc/run/a"):
        with pytest.raises(
            ValueError, match=r"workdir .*run.*\. Give a folder that can be written"
        ):
            px.train("ring_sp", [tmp_path / "none.txt"], workdir, small=True)
    with pytest.raises(ValueError, match=r"data .*none\.txt"):
        px.train("ring_sp", [tmp_path / "none.txt"], tmp_path / "a" / "b", small=True)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_metrics_on_a_full_disk(tmp_path):
    """Every write to /dev/full fails as on a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    metrics = Metrics(tmp_path)
    metrics._file.close()
    metrics._file = Path("/dev/full").open("w")  # noqa: SIM115
    said = r"metrics\.jsonl: No space left on device.*resumes"
    with pytest.raises(ValueError, match=said), metrics:
        metrics.write(1, {"loss": 1.0})
    assert metrics._file.closed


def test_what_a_killed_process_left_is_no_checkpoint(tmp_path):
    inside = tmp_path / "checkpoints"
    for name in ("1", "2.orbax-checkpoint-tmp", ".removed-3", "4"):
        (inside / name).mkdir(parents=True)
        (inside / name / "file").write_text(name)
    for name in ("1", "2.orbax-checkpoint-tmp", ".removed-3"):
        (inside / name / "_CHECKPOINT_METADATA").write_text("{}")
    assert complete_steps(tmp_path) == [1]  # 4 was never complete
    write_checksums(tmp_path, 1)
    (tmp_path / "checksums" / ".5.json").write_text("half")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in inside.iterdir()) == ["1", "4"]
    assert [p.name for p in (tmp_path / "checksums").iterdir()] == ["1.json"]
