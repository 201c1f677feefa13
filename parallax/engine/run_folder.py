"""The folder of a training run: one run holds it, and all its processes see and write it."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from parallax.distributed.agreement import from_first, together, wait_for_all
from parallax.distributed.processes import is_first, process_count, process_index
from parallax.requests.naming import RUN_FILE

Line = Callable[[str], None]

_LOCK, _TOKEN = ".lock", ".processes-"
_STALE_WITHIN_S = 120.0
_SEE_WITHIN_S = 5.0  # a network file system may show a new file late


@contextlib.contextmanager
def held(workdir: Path, on_progress: Line) -> Iterator[None]:
    """Hold the folder for this run, after all processes have seen and written in it.

    Process 0 makes the folder if needed and holds a lock on a file in it, which the kernel frees
    when that process ends, however it ends.

    Raises:
      ValueError: another run holds the folder, or a process does not see what process 0 wrote or
        cannot write; on all processes. A folder that this call made is gone again.
    """
    made = together(f"the folder {workdir}", lambda: is_first() and _make(workdir))
    lock: _Lock | None = None
    try:
        lock = together(
            f"the folder {workdir}", lambda: _Lock(workdir, on_progress) if is_first() else None
        )
        if lock is not None and lock.without:
            on_progress(
                f"{workdir}: its file system has no locks ({lock.without}), so make sure that no "
                "other run uses it"
            )
        _check_shared(workdir)
    except BaseException:
        if lock is not None:
            lock.release()
        if made:
            with contextlib.suppress(OSError):
                workdir.rmdir()
        raise
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def write_run(workdir: Path, run: Mapping[str, Any]) -> None:
    """Write run.json; the file is always whole."""
    target = workdir / RUN_FILE
    waiting = target.with_name(f".{RUN_FILE}")
    try:
        waiting.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        os.replace(waiting, target)
    except OSError as error:
        waiting.unlink(missing_ok=True)
        raise ValueError(f"{target}: {error.strerror}. Make room or make it writable.") from None


def _make(workdir: Path) -> bool:
    """Make the folder; return whether it was not there."""
    try:
        missing = not workdir.exists()
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(workdir, error) from None
    return missing


def _unusable(workdir: Path, error: OSError) -> ValueError:
    return ValueError(
        f"workdir {workdir}: {error.strerror}. Give a folder that all processes can write."
    )


class _Lock:
    """A lock on a folder, of this process.

    Attributes:
      without: why the file system has no locks; "" where it has.

    Raises:
      ValueError: another process holds it, or the folder cannot be written.
    """

    def __init__(self, workdir: Path, on_progress: Line):
        self._path, self.without = workdir / _LOCK, ""
        try:
            self._file = self._locked(workdir, on_progress)
            self._file.seek(0)
            if not self.without and (before := self._file.read()):
                on_progress(f"{workdir}: taken over from {before}, which did not leave it in order")
            self._file.truncate(0)
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
            self._file.flush()
        except OSError as error:
            raise _unusable(workdir, error) from None

    def _locked(self, workdir: Path, on_progress: Line) -> TextIO:
        end_at, said = time.monotonic() + _STALE_WITHIN_S, False
        while True:
            file = self._path.open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read() or "another process"
                file.close()
                elsewhere = f" on {socket.gethostname()} " not in f"{holder} "
                if elsewhere and time.monotonic() < end_at:
                    if not said:
                        on_progress(
                            f"{workdir}: {holder} holds it. Waiting {_STALE_WITHIN_S:.0f} s, as a "
                            "file server keeps the lock of a host that went down for a while"
                        )
                    said = True
                    time.sleep(1.0)
                    continue
                raise ValueError(
                    f"workdir {workdir}: {holder} trains in it. Use another --workdir, or start "
                    "the processes of one run with --distributed."
                ) from None
            except OSError as error:
                self.without = error.strerror or str(error)
                return file
            # The run before may have removed the file between our opening and locking it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
            file.close()

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()
        self._file.close()


def _check_shared(workdir: Path) -> None:
    """Raise ValueError, on all processes, unless all see and write the same folder."""
    if process_count() == 1:
        return
    token = from_first("the folder's token", secrets.token_hex(8))
    own = _token(workdir, token, process_index())

    def see_first() -> None:
        first = _token(workdir, token, 0)
        try:
            appears = _appears(first)
        except OSError as error:  # a folder that may not be looked into
            raise _unusable(workdir, error) from None
        if not appears:
            raise ValueError(
                f"workdir {workdir}: what process 0 writes there does not appear here. Give a "
                "folder of a file system that all nodes share, at the same path."
            )
        _write(own, workdir)

    def see_all() -> None:
        for process in range(process_count()):
            if not _appears(_token(workdir, token, process)):
                raise ValueError(f"workdir {workdir}: what process {process} writes is not here.")

    refused: ValueError | None = None
    try:
        together(f"the folder {workdir}", lambda: _write(own, workdir) if is_first() else None)
        together(f"the folder {workdir}", see_first)
        together(f"the folder {workdir}", see_all if is_first() else lambda: None)
    except ValueError as error:  # raised on all
        refused = error
    with contextlib.suppress(OSError):
        own.unlink()
    wait_for_all("the folder is as it was")
    if refused is not None:
        raise refused


def _token(workdir: Path, token: str, process: int) -> Path:
    return workdir / f"{_TOKEN}{token}-{process}"


def _write(path: Path, workdir: Path) -> None:
    try:
        path.write_text("", encoding="utf-8")
    except OSError as error:
        raise _unusable(workdir, error) from None


def _appears(path: Path) -> bool:
    end_at = time.monotonic() + _SEE_WITHIN_S
    while not path.exists():
        if time.monotonic() > end_at:
            return False
        time.sleep(0.1)
    return True
