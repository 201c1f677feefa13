"""How a command ends early: its reader goes away, or Ctrl-C."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parallax.experiments.__main__ import EXPERIMENTS
from parallax.experiments.launch import command_module, launch

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def started(*arguments, cwd) -> Iterator[Any]:
    """A command in a process of its own, which is ended with the test.

    It takes Ctrl-C even if these tests run behind a shell's &, where it is ignored by all.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "parallax.experiments", *arguments], text=True, cwd=cwd,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        signal.signal(signal.SIGINT, before)
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("arguments", [["list", "models"], ["claims", "--paper=ring_sp"]])
def test_a_reader_that_goes_away_ends_it_quietly(arguments, tmp_path):
    with started(*arguments, cwd=tmp_path) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141  # 128 + SIGPIPE, as a shell says
    if arguments[0] == "claims":  # results are written before they are shown
        assert (tmp_path / "out" / "claims.json").is_file()


def test_output_on_a_full_disk_is_one_line_and_2(tmp_path):
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [sys.executable, "-m", "parallax.experiments", "list", "models"], text=True,
            cwd=tmp_path, stdout=full, stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1)
    assert "standard output: No space left on device" in run.stderr


def test_results_are_shown_even_if_they_cannot_be_saved(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    pairs = command_module("pairs")
    measured = SimpleNamespace(to_dict=lambda: {}, table=lambda: "1.02x faster")
    monkeypatch.setattr(pairs, "run_pairs", lambda *_, **__: measured)

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    Path("a.json").write_text("before")
    monkeypatch.setattr(Path, "replace", full_disk)
    assert launch("pairs", ["--json=a.json"], tuple(EXPERIMENTS)) == 2
    text = capsys.readouterr()
    assert text.out == "1.02x faster\n"
    assert text.err == (
        "parallax pairs: --json=a.json: No space left on device. Give a file that can be written.\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert Path("a.json").read_text() == "before"


ENOUGH = {
    "compress": ["--model=a", "--budget=0.3x", "--out=small"],
    "deploy": ["--model=a"],
    "export": ["--model=a", "--out=small"],
    "describe": ["--model=a", "--batch=1"],
    "generate": ["--model=a", "--prompt=b", "--json=c.json"],
    "explain": ["a.hlo"],
    "inspect": ["a.hlo"],
    "plan": ["--model=a", "--batch=1", "--prompt_len=1"],
    "train": ["--model=a", "--data=b", "--workdir=run"],
}
KEPT = {
    "compress": "small was not made",
    "export": "small was not made",
    "generate": "what was printed is all that was generated; c.json was not written",
    "train": "no checkpoint is in run; the same command starts over",
}


def interrupt(_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_ctrl_c_is_one_line_and_130(name, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_module(name), "main", interrupt)
    assert launch(name, ENOUGH.get(name, []), tuple(EXPERIMENTS)) == 130
    (line,) = capsys.readouterr().err.split("\n")[1:-1]  # a terminal shows ^C on the first
    assert line == f"parallax {name}: interrupted; {KEPT.get(name, 'nothing was written')}."


def test_ctrl_c_names_what_was_written(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/old.json").write_text("{}")
    os.utime("out/old.json", (1, 1))

    def main(_):
        Path("out/kernels.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(command_module("bench_kernels"), "main", main)
    assert launch("bench_kernels", [], tuple(EXPERIMENTS)) == 130
    assert "interrupted; written so far: out/kernels.json." in capsys.readouterr().err


def test_ctrl_c_of_compress_says_what_is_left_of_it(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(".small.partial").mkdir()
    monkeypatch.setattr(command_module("compress"), "main", interrupt)
    assert launch("compress", ENOUGH["compress"], tuple(EXPERIMENTS)) == 130
    assert ".small.partial is a partial one, which the next run" in capsys.readouterr().err


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(x) for x in found.stdout.split()]


def lines_until(stream, text):
    """Reads lines until one has the text; all of them."""
    found = []
    for line in stream:
        found.append(line)
        if text in line:
            return found
    pytest.fail(f"it ended: {found}")


def test_ctrl_c_ends_the_children_of_compare(tmp_path):
    """The signal reaches the parent alone: the children are ended by it."""
    with started("compare", "--paper=ring_sp", "--lenses=verify", cwd=tmp_path) as process:
        lines_until(process.stderr, "verify: ")
        mine = children(process.pid)
        assert mine
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait() == 130
    assert time.monotonic() - sent < 20
    assert "parallax compare: interrupted; nothing was written." in rest
    assert "Traceback" not in rest
    assert not [pid for pid in mine if Path(f"/proc/{pid}").exists()]
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_of_train_saves_and_says_how_to_go_on(tmp_path):
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 100)
    arguments = (
        "--model=ring_sp", "--small", "--data=a.txt", "--workdir=run", "--steps=100000",
        "--batch=2", "--seq_len=16", "--log_every=1",
    )  # fmt: skip
    with started("train", *arguments, cwd=tmp_path) as process:
        lines_until(process.stderr, "step 1/")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (saved,) = (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert f"stopped; step {saved} is saved in run; the same command resumes from there" in out
