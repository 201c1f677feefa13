"""Real processes on this machine for tests: started together, ended whatever happens."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status (negative: by a signal), output, errors, and when."""

    status: int
    out: str
    err: str
    at: float


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def started(commands, folder, *own, **environment):
    """Start `python ARGUMENTS` for each list of arguments; yields Popen objects.

    `own` are variables of each process, in order; `environment` those of all.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_ENABLE_X64")}
    variables = inherited | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    processes = []
    try:
        for number, arguments in enumerate(commands):
            with (
                (folder / f"{number}.out").open("w") as out,
                (folder / f"{number}.err").open("w") as err,
            ):
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, arguments)],
                        stdout=out,
                        stderr=err,
                        cwd=folder,
                        env=variables | (own[number] if own else {}),
                        stdin=subprocess.DEVNULL,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait(processes, folder, timeout=120):
    """Wait for all; the output of those that do not end is in the error."""
    end, ended = time.monotonic() + timeout, {}
    while len(ended) < len(processes):
        for number, process in enumerate(processes):
            if number not in ended and process.poll() is not None:
                out, err = ((folder / f"{number}.{kind}").read_text() for kind in ("out", "err"))
                ended[number] = Ended(process.returncode, out, err, time.monotonic())
        said = {n: (folder / f"{n}.err").read_text()[-1500:] for n in range(len(processes))}
        assert time.monotonic() < end, f"still running after {timeout} s: {said}"
        time.sleep(0.05)
    return [ended[number] for number in range(len(processes))]


def run(commands, folder, *own, timeout=120, **environment):
    """Run all to their end and return an Ended for each; variables as for `started`."""
    with started(commands, folder, *own, **environment) as processes:
        return wait(processes, folder, timeout)


def wait_for_file(path, timeout=60):
    end = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < end, f"{path} was not written within {timeout} s"
        time.sleep(0.05)
