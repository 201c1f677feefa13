"""The printing of a command's output, and its end when the reader goes away."""

import os
import sys
from collections.abc import Callable
from typing import TextIO

from rich.console import Console, RenderableType

from parallax.distributed.agreement import together
from parallax.distributed.processes import is_first

BAD_INPUT = 2
CLOSED_PIPE = 141  # the status that a shell reports for a program that SIGPIPE ended


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Leave the exit status to `quietly`; rich's own is 1, that of a failed comparison."""
        raise BrokenPipeError


def show(renderable: RenderableType, width: int) -> None:
    """Print on standard output, at the terminal's width or, elsewhere, at a fixed one."""
    _Output(width=None if sys.stdout.isatty() else width).print(renderable)


def on_first[T](what: str, act: Callable[[], T]) -> T | None:
    """Write results on process 0, and return None on the others; all fail if it fails there."""
    return together(what, lambda: act() if is_first() else None)


def quietly(run: Callable[[], int]) -> int:
    """Run and return the exit status.

    It is 141, without a message, if the output's reader went away, and 2 if the output cannot be
    written for another reason, such as a full disk.
    """
    try:
        status = run()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            _forget(stream)
        return CLOSED_PIPE
    except OSError as error:
        _forget(sys.stdout)
        print(f"parallax: standard output: {error.strerror}. Make room.", file=sys.stderr)
        return BAD_INPUT


def _forget(stream: TextIO) -> None:
    """Discard what is still buffered: writing it would fail again as the interpreter ends."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
