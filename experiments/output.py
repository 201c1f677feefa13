"""What a command prints, and how it ends when nobody reads it any more."""

import os
import sys
from collections.abc import Callable
from typing import TextIO

from rich.console import Console, RenderableType

CLOSED_PIPE = 141  # as a shell reports a program that SIGPIPE ended


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Leaves the exit status to `quietly`; rich's own would be 1, a failed comparison's."""
        raise BrokenPipeError


def show(renderable: RenderableType, width: int) -> None:
    """Prints on standard output, at the terminal's width or, elsewhere, a fixed one."""
    _Output(width=None if sys.stdout.isatty() else width).print(renderable)


def quietly(run: Callable[[], int]) -> int:
    """The exit status of `run`; 141, with nothing said, if the reader of its output went away."""
    try:
        status = run()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            _forget(stream)
        return CLOSED_PIPE


def _forget(stream: TextIO) -> None:
    """Sends what is still buffered nowhere: it would fail again as the interpreter ends."""
    try:
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
