"""The start of a command on several processes, what each may print, and its end."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from parallax.distributed import watch
from parallax.distributed.agreement import agree, together
from parallax.distributed.processes import process_count, process_index
from parallax.distributed.schedulers import started_task
from parallax.requests.processes import ProcessesRequest

FAILED = 1  # exit status of a fault of the program
_OWN_FLAGS = ("process_id", "log_dir", "start_timeout")


def join(name: str, flags: Any) -> None:
    """Join the other processes of a command, if its flags ask for them.

    Args:
      name: the command.
      flags: its `Flags`, whose field `processes` says how to find the others.

    Raises:
      ValueError: see `px.initialize`; the flags differ between processes; a log cannot be written;
        or a scheduler started several processes and --distributed is not given.
    """
    request: ProcessesRequest = flags.processes
    if not request.distributed:
        _refuse_lone_task(name)
        return
    import jax

    from parallax.distributed.startup import initialize

    if getattr(flags, "virtual", False):
        jax.config.update("jax_platforms", "cpu")
    say = _own_error(f"parallax {name}")
    initialize(
        request.coordinator, request.num_processes, request.process_id,
        timeout_s=request.start_timeout, save_on_sigterm=flags.saves_on_sigterm, say=say,
    )  # fmt: skip
    folder = Path(request.log_dir or results_folder(flags) / "logs")
    together("log", lambda: _print_to_log(folder / f"process-{process_index()}.log"))
    agree("flags", {name: value for name, value in _values(flags) if name not in _OWN_FLAGS})


def leave() -> None:
    """Wait for the other processes at a command's end, if there are any."""
    if process_count() > 1:
        from parallax.distributed.startup import finish

        finish()


def leave_all(line: str, status: int) -> None:
    """Leave, with all other processes, because of an error; return if there is one process."""
    if process_count() > 1:
        watch.fail(line, status)


def leave_after(error: Exception) -> None:
    """Leave, with all others, after an error that is no user's; return if there is one process."""
    if process_count() > 1:
        from parallax.distributed.startup import leave_after

        leave_after(error, FAILED, show=traceback.print_exception)


def speaks() -> bool:
    """Whether this process shows its own errors; the others show them as all do, with its name."""
    return process_index() == 0


def results_folder(flags: Any) -> Path:
    """Return the folder where a command writes, from its flags."""
    request = getattr(flags, "request", None)
    return Path(getattr(flags, "out", None) or getattr(request, "workdir", None) or "")


def _values(request: Any) -> Iterator[tuple[str, Any]]:
    """Yield each flag's name and value."""
    for field in fields(request):
        value = getattr(request, field.name)
        if field.metadata.get("nested"):
            yield from _values(value)
        elif "option" in field.metadata:
            yield field.metadata["option"].flag or field.name, value


def _refuse_lone_task(name: str) -> None:
    """Raise ValueError in a process that a scheduler started with others, as if it were alone."""
    task = started_task()
    if task is not None and task.count > 1:
        raise ValueError(
            f"this is process {task.number} of {task.count} that {task.scheduler} started, and "
            f"without --distributed each of them would run the whole of `{name}` by itself. Add "
            "--distributed, or start one process."
        )


def _own_error(before: str) -> Callable[[str], None]:
    """Return a function that prints on what is standard error now, each line with a beginning."""
    stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8", errors="replace")

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # its reader went away
            print(f"{before}: {line}", file=stream, flush=True)

    return say


def _print_to_log(path: Path) -> None:
    """Send to a log what this process prints from now on.

    Of process 0 only what libraries written in C print on standard output, such as Gloo.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file: TextIO = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise ValueError(
            f"log {path}: {error.strerror}. Give a folder that every process can write with "
            "--log_dir."
        ) from None
    sys.stdout.flush()
    if process_index():
        os.dup2(file.fileno(), 2)
        sys.stdout = file
    else:
        sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, buffering=1)
    os.dup2(file.fileno(), 1)
