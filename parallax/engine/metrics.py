"""The metrics of a training run: one JSON line per step, and event files for TensorBoard."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from parallax.engine.events import Events


class Writer(Protocol):
    """A writer of metrics."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...


class NoMetrics:
    """The writer of processes other than 0: it writes nothing."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write nothing."""


class Metrics:
    """A writer of `metrics.jsonl` and TensorBoard's event files in a run's folder.

    Args:
      folder: the run's folder.
      first_step: steps done before; lines that an earlier run wrote of later steps are removed,
        and one that a killed or failed run left unfinished.

    Raises:
      ValueError: a file cannot be written.
    """

    def __init__(self, folder: str | Path, first_step: int = 0):
        self._path = Path(folder) / "metrics.jsonl"
        try:
            _cut_off(self._path, first_step)
            self._file = self._path.open("a", encoding="utf-8")
            self._events = Events(Path(folder), first_step + 1)
        except OSError as error:
            raise self._failed(error) from None

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the metrics of one step, by name.

        Raises:
          ValueError: the file cannot be written.
        """
        try:
            self._file.write(json.dumps({"step": step, **figures}) + "\n")
            self._file.flush()
            self._events.write(step, figures)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> ValueError:
        return ValueError(
            f"{self._path}: {error.strerror}. Make room or make it writable, and run the same "
            "command: it resumes from the newest complete checkpoint."
        )

    def close(self) -> None:
        """Flush and close all files.

        Raises:
          ValueError: what was left to write cannot be written.
        """
        try:
            with contextlib.closing(self._file):
                self._events.close()
        except OSError as error:
            raise self._failed(error) from None

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        try:
            self.close()
        except ValueError:
            if kind is None:  # otherwise the first error is the one to say
                raise


def _cut_off(path: Path, last: int) -> None:
    """Keep the lines of steps up to `last`; the file is replaced at once."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _step_of(line) <= last]
    waiting = path.with_name(f".{path.name}")
    try:
        waiting.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(waiting, path)
    except OSError:
        waiting.unlink(missing_ok=True)
        raise


def _step_of(line: str) -> float:
    """Return the step of a line; infinity for one that is not whole."""
    try:
        found: Any = json.loads(line)
        return found["step"]
    except (ValueError, TypeError, KeyError):
        return float("inf")
