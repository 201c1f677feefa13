"""Ctrl-C of a command: it waits for the end of an import, and is ignored once all is done.

A module that is interrupted while it is imported prints a traceback (NumPy) or turns the interrupt
into another error (JAX). JAX goes on when it is interrupted while it looks for its platforms or
frees memory.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_AGAIN_S = 0.02
_UNINTERRUPTED = ("jax/_src/xla_bridge.py", "jax/_src/lib/__init__.py")


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handle Ctrl-C inside, and ignore it behind, where only the interpreter's end is left.

    A process whose parent ignores Ctrl-C, such as one in a shell's background, goes on doing so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or be called again soon where JAX or a module is starting."""
    above = frame
    while above is not None:
        file = above.f_code.co_filename
        if file.startswith("<frozen importlib") or file.endswith(_UNINTERRUPTED):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
            return
        above = above.f_back
    signal.default_int_handler(number, frame)
