"""A committed record of memory terms: what rematerialisation, donation and fusion save."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parallax.codec import FileFormat, read_json

Term = Literal["rematerialisation", "donation", "fusion"]
Counted = Literal["temp", "all"]
RECORD_VERSION = 1


@dataclass(frozen=True)
class MemoryTerm:
    """Two compilations of one full-size program that differ in one thing (tag: compiled).

    Attributes:
      paper: whose model and workload.
      strategy: that the program runs under.
      program: "training step", "decoding step" or "prefill".
      term: what is switched on.
      before, after: how the two were compiled, in words.
      counted: "temp" is the compiler's temporary buffers; "all" is what a device holds: arguments,
        results and temporary buffers, what shares memory once.
      before_bytes, after_bytes: of that, on one device.
      claimed_percent: what `compressed_layerwise` says that the term saves.
      claim: of what it says so.
    """

    paper: str
    strategy: str
    program: str
    term: Term
    before: str
    after: str
    counted: Counted
    before_bytes: int
    after_bytes: int
    claimed_percent: float
    claim: str

    def __post_init__(self):
        if self.before_bytes < 1 or self.after_bytes < 0:
            sizes = self.before_bytes, self.after_bytes
            raise ValueError(f"bytes must be from 0 on, before above 0; got {sizes}.")

    @property
    def saved_percent(self) -> float:
        """Of the bytes before; negative where there are more after."""
        return 100.0 * (1 - self.after_bytes / self.before_bytes)


@dataclass(frozen=True)
class MemoryRecord:
    """A run of `benchmarks/memory_terms.py`.

    Attributes:
      date, command: when and how it was made.
      versions: package -> version.
      cluster: that was compiled for.
      checks: what was looked at in the programs' text, in words.
      rows: what was found.
    """

    date: str
    command: str
    versions: dict[str, str]
    cluster: str
    checks: tuple[str, ...]
    rows: tuple[MemoryTerm, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; each row with what it saves."""
        data = FILE.encode(self)
        for row, plain in zip(self.rows, data["rows"], strict=True):
            plain["saved_percent"] = round(row.saved_percent, 2)
        return data


FILE = FileFormat(MemoryRecord, "memory record", "record_version", RECORD_VERSION, "Make it again.")


def read_memory_record(path: str | Path) -> MemoryRecord:
    """Reads a record.

    Raises:
      ValueError: not there, not JSON, fields missing or unknown, or figures that cannot be.
    """
    where = f"{FILE.name} {path}"
    data = read_json(path, where, FILE.next_step)
    # What a row saves is no field of it: it has to be what the row's bytes give.
    rows = data.get("rows") if isinstance(data, dict) else None
    saved = [row.pop("saved_percent", None) for row in rows or () if isinstance(row, dict)]
    record = FILE.decode(data, where)
    for i, (row, said) in enumerate(zip(record.rows, saved, strict=True)):
        if not isinstance(said, int | float) or not math.isclose(
            said, row.saved_percent, abs_tol=0.006
        ):
            raise ValueError(
                f"{where}: rows.{i}: saved_percent is {said!r}, but its bytes give "
                f"{row.saved_percent:.2f}. The file was changed by hand. {FILE.next_step}"
            )
    return record
