"""Source lines: the user's line of an operation, and its text."""

import linecache
from collections.abc import Iterable
from pathlib import PurePath
from typing import NamedTuple

from parallax.hlo.source import Frame

# Code of installed packages is not the user's: the line that called it is.
_INSTALLED = ("site-packages", "dist-packages")


class SourceLine(NamedTuple):
    """A line of a source file, from 1 on, and the function it is in."""

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{PurePath(self.file).name}:{self.line}"

    @property
    def code(self) -> str:
        """The text of the line; "" if the file is not here."""
        return linecache.getline(self.file, self.line).strip()


def users_line(frames: Iterable[Frame]) -> SourceLine | None:
    """Return the innermost line outside installed packages, or the innermost; None without any."""
    frames = tuple(frames)
    for frame in frames:
        if not any(part in _INSTALLED for part in PurePath(frame.file).parts):
            return SourceLine(*frame)
    return SourceLine(*frames[0]) if frames else None
