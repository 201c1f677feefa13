"""Lost, stopped and failing processes: all others leave, and name them."""

import os
import signal
import time
from contextlib import ExitStack

import pytest

from tests.distributed.running import free_port, started, wait, wait_for_file

PROGRAM = """
import pathlib, sys, time
import parallax as px

number, port, fails = int(sys.argv[1]), sys.argv[2], sys.argv[3]
px.initialize(f"localhost:{port}", 3, number)
pathlib.Path(f"ready-{number}").touch()
if fails == "finish":
    sys.exit()
time.sleep(3)
if fails == "raise" and number == 1:
    raise KeyError("a fault of the program")
time.sleep(100)  # as in a collective that never ends
"""
# name: (signal, process, the status of the others, what they say)
CASES = {
    "the first is killed": (signal.SIGKILL, 0, 3, ") is lost: "),
    "another is killed": (signal.SIGKILL, 2, 3, ") is lost: no sign of life"),
    "the first is stopped": (signal.SIGSTOP, 0, 3, ") is lost: no answer"),
    "another is stopped": (signal.SIGSTOP, 1, 3, ") is lost: no sign of life"),
    "another raises": (None, 1, 1, "): KeyError: 'a fault of the program'"),
}


@pytest.mark.full
def test_all_others_leave_and_name_it(tmp_path):
    """The cases run side by side: they wait more than they compute."""
    runs = {}
    (tmp_path / "program.py").write_text(PROGRAM)
    with ExitStack() as stack:
        for number, (name, (sent, *_)) in enumerate(CASES.items()):
            folder = tmp_path / str(number)
            folder.mkdir()
            port, fails = free_port(), "raise" if sent is None else "none"
            commands = [(tmp_path / "program.py", k, port, fails) for k in range(3)]
            runs[name] = folder, stack.enter_context(started(commands, folder))
        sent_at = {}
        for name, (folder, processes) in runs.items():
            sent, victim, _, _ = CASES[name]
            for k in range(3):
                wait_for_file(folder / f"ready-{k}")
            if sent is not None:
                os.kill(processes[victim].pid, sent)
            sent_at[name] = time.monotonic()
        for name, (folder, processes) in runs.items():
            sent, victim, status, said = CASES[name]
            others = [k for k in range(3) if k != victim]
            if sent == signal.SIGSTOP:
                end = time.monotonic() + 60
                while any(processes[k].poll() is None for k in others):
                    assert time.monotonic() < end, name
                    time.sleep(0.05)
                processes[victim].kill()
            ended = wait(processes, folder)
            for k in others:
                assert ended[k].status == status, (name, k, ended[k])
                assert f"process {victim} (" in ended[k].err, (name, k, ended[k].err)
                assert said in ended[k].err, (name, k, ended[k].err)


@pytest.mark.slow
def test_an_end_is_no_loss(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    port = free_port()
    with started([("program.py", k, port, "finish") for k in range(3)], tmp_path) as processes:
        ended = wait(processes, tmp_path)
    assert [e.status for e in ended] == [0, 0, 0], [e.err for e in ended]
    assert not any("lost" in e.err for e in ended)
