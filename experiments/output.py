"""What a command prints, and how it ends when nobody reads it any more."""

import os
import sys
from collections.abc import Callable

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
        # What is still buffered would fail again as the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
