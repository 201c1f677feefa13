"""The child processes of the lenses, each running one function in its own environment.

JAX fixes its platform and its number of devices when it starts, so verify (virtual CPU devices) and
compile (a GPU topology) each get a fresh process, and work from a notebook where JAX already runs.
Parent and child exchange frames over pipes: the task goes to the child (cloudpickle), progress
lines and one result come back (pickle). Nothing is read from a file.
"""

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any

from parallax.lenses.users_errors import in_one_line, users_line

Progress = Callable[[str], None]

_HEADER = struct.Struct("<Q")
# A user's mistakes: the message is enough, so the parent raises the same without a traceback.
_USER_ERRORS = (ValueError, NotImplementedError, ModuleNotFoundError)


_running: set[subprocess.Popen] = set()


class ChildError(RuntimeError):
    """A failure of the child process that is no user's mistake; carries the child's traceback."""


def run_in_child(
    function: Callable[..., Any],
    *args: Any,
    environment: Mapping[str, str],
    on_progress: Progress = lambda line: None,
) -> Any:
    """Run `function(*args, on_progress=...)` in a fresh Python process.

    Args:
      function, args: anything cloudpickle can send; functions of `__main__` are sent by value.
      environment: environment variables, set on top of this process's own.
      on_progress: called with each line the function reports.

    Returns:
      The function's result.

    Raises:
      ValueError, NotImplementedError, ModuleNotFoundError: as the function raised them; a
        TypeError of a user's code as a ValueError with its line.
      ChildError: any other failure, with the child's traceback or the end of its log.
    """
    from parallax.lenses.pickling import dumps

    task = dumps((sys.path, function, args))
    command = [sys.executable, "-m", "parallax.lenses.child"]
    variables = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=variables
        ) as process,
    ):
        _running.add(process)
        try:
            return _talk(process, task, function.__name__, log, on_progress)
        finally:
            process.kill()
            _running.discard(process)


def end_children() -> None:
    """Kill the children of all threads; their `run_in_child` calls then raise ChildError."""
    for process in tuple(_running):
        process.kill()


def _talk(process: subprocess.Popen, task: bytes, name: str, log: IO[bytes], on_progress: Progress):
    """Send the task, pass on progress, and return the child's result or raise its error."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        _write(process.stdin, task)
        process.stdin.close()
    while (frame := _read(process.stdout)) is not None:
        kind, value = pickle.loads(frame)
        if kind == "progress":
            on_progress(value)
        elif kind == "result":
            return value
        elif kind == "user_error":
            raise value
        else:
            raise ChildError(f"{name} failed in its child process:\n{value}")
    process.wait()
    log.seek(0)
    tail = log.read()[-2000:].decode(errors="replace")
    raise ChildError(
        f"{name}: its child process ended with status {process.returncode} and no result. "
        f"End of its log:\n{tail}"
    )


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(_HEADER.pack(len(data)) + data)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes | None:
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    (length,) = _HEADER.unpack(header)
    data = stream.read(length)
    return data if len(data) == length else None


def _main() -> None:
    # Printed output goes to the log, so that only frames are written to the pipe.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    task = _read(sys.stdin.buffer)
    assert task is not None, "no task on standard input"

    def send(kind: str, value: Any) -> None:
        _write(pipe, pickle.dumps((kind, value)))

    try:
        path, function, args = pickle.loads(task)
        sys.path[:] = path
        send("result", function(*args, on_progress=lambda line: send("progress", line)))
    except _USER_ERRORS as error:
        send("user_error", type(error)(*error.args))
    except TypeError as error:  # of a user's module, if a line of it is in the traceback
        if users_line(error):
            send("user_error", ValueError(in_one_line(error)))
        else:
            send("failure", traceback.format_exc())
    except BaseException:
        send("failure", traceback.format_exc())


if __name__ == "__main__":
    _main()
