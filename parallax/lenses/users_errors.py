"""Errors of users' code: the line that raised one, in a single sentence."""

import contextlib
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

_NOT_USERS = (str(Path(__file__).parents[1]), sysconfig.get_paths()["stdlib"], "<")


def users_line(error: BaseException) -> str:
    """Return the innermost line of a traceback that is the user's, as FILE:LINE; "" if none is."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = (f for f in frames if "site-packages" not in f.filename)
    found = [f"{f.filename}:{f.lineno}" for f in theirs if not f.filename.startswith(_NOT_USERS)]
    return found[-1] if found else ""


def in_one_line(error: BaseException) -> str:
    """Return the message of an error with the user's line before it, without JAX's advice."""
    what = " ".join(str(error).split("-----")[0].split())
    line = users_line(error)
    return f"{line}: {what}" if line else what


@contextlib.contextmanager
def named_with_its_line(context: str) -> Iterator[None]:
    """Raise a TypeError of the user's code as a ValueError with its line and `context`."""
    try:
        yield
    except TypeError as error:
        raise ValueError(f"{context}: {in_one_line(error)}") from error
