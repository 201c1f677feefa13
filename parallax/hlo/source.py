"""The source lines of instructions: a module's tables of files, functions and stack frames."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

# The tables between a module's header and its computations.
TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_ENTRY = re.compile(r'([0-9]{1,9}) (?:"((?:[^"\\]|\\.)*)"|\{([a-z_=0-9 ]*)\})')
_NUMBER = re.compile(r"([a-z_]+)=([0-9]{1,9})")
_FRAME_ID = re.compile(r"\bstack_frame_id=([0-9]{1,9})")
_FILE = re.compile(r'\bsource_file="((?:[^"\\]|\\.)*)"')
_LINE = re.compile(r"\bsource_line=([0-9]{1,9})")
_MAX_FRAMES = 1000
# Quoted text of XLA's: \303\251 are the bytes of é, and a backslash stands before quotes.
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})|\\(.)")
_CONTROLS = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class Frame(NamedTuple):
    """One call in a stack: the file, the line from 1 on, and the function; "" if not known."""

    file: str
    line: int
    function: str


@dataclass(frozen=True)
class SourceTables:
    """The tables of a module that name source lines.

    Attributes:
      files, functions: id -> name.
      locations: id -> (file id, function id, line).
      frames: id -> (location id, id of the caller's frame, which is absent for the outermost).
    """

    files: Mapping[int, str] = field(default_factory=dict)
    functions: Mapping[int, str] = field(default_factory=dict)
    locations: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    frames: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def frames_of(self, metadata: str) -> tuple[Frame, ...]:
        """Return the stack of an instruction's metadata, innermost first; () if it names none.

        Older JAX versions write one source_file and source_line in place of a frame's id.
        """
        match = _FRAME_ID.search(metadata)
        if match is None:
            file, line = _FILE.search(metadata), _LINE.search(metadata)
            return (Frame(unescaped(file[1]), int(line[1]), ""),) if file and line else ()
        at, stack = int(match[1]), []
        while at in self.frames and len(stack) < _MAX_FRAMES:
            location, at = self.frames[at]
            file, function, line = self.locations.get(location, (0, 0, 0))
            if file in self.files and line:
                stack.append(Frame(self.files[file], line, self.functions.get(function, "")))
        return tuple(stack)


def unescaped(text: str) -> str:
    """Return a quoted text of XLA's as it was before quoting; names need not be ASCII."""
    if "\\" not in text:
        return text

    def byte(match: re.Match[bytes]) -> bytes:
        if match[1]:
            return bytes([int(match[1], 8)])
        return _CONTROLS.get(match[2], match[2])

    return _ESCAPE.sub(byte, text.encode()).decode(errors="replace")


def read_tables(rows: Mapping[str, list[str]]) -> SourceTables:
    """Read a module's tables, given as name -> lines; lines of another form are left out."""
    names: dict[str, dict[int, str]] = {"FileNames": {}, "FunctionNames": {}}
    numbers: dict[str, dict[int, dict[str, int]]] = {"FileLocations": {}, "StackFrames": {}}
    for table, lines in rows.items():
        for match in filter(None, map(_ENTRY.fullmatch, lines)):
            if match[3] is None and table in names:
                names[table][int(match[1])] = unescaped(match[2])
            elif match[3] is not None and table in numbers:
                row = {key: int(n) for key, n in _NUMBER.findall(match[3])}
                numbers[table][int(match[1])] = row
    locations = {
        n: (row.get("file_name_id", 0), row.get("function_name_id", 0), row.get("line", 0))
        for n, row in numbers["FileLocations"].items()
    }
    parents = {n: row.get("parent_frame_id", 0) for n, row in numbers["StackFrames"].items()}
    # XLA writes the caller's id plus one, so that 1 is no caller; other printers write 0 for none.
    more = 0 if 0 in parents.values() else 1
    frames = {
        n: (row.get("file_location_id", 0), parents[n] - more)
        for n, row in numbers["StackFrames"].items()
    }
    return SourceTables(names["FileNames"], names["FunctionNames"], locations, frames)


def is_table_row(line: str) -> bool:
    """Whether a line has the form of a row of a table."""
    return _ENTRY.fullmatch(line) is not None
