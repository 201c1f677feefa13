"""The committed record of the memory ablation: what rematerialisation, donation and fusion save."""

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
      paper: name of the paper whose model and workload it has.
      strategy: name of the strategy.
      program: "training step", "decoding step" or "prefill".
      term: the technique that is switched on.
      before, after: how the two were compiled, in words.
      counted: "temp" counts the compiler's temporary buffers; "all" counts what a device holds:
        arguments, results and temporary buffers, with shared memory counted once.
      before_bytes, after_bytes: bytes counted, per device.
      claimed_percent: saving that `compressed_layerwise` claims for the technique.
      claim: what that paper claims it of.
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
        """The percentage of the bytes that is saved; negative where there are more after."""
        return 100.0 * (1 - self.after_bytes / self.before_bytes)


@dataclass(frozen=True)
class MemoryRecord:
    """A recorded run of `benchmarks/memory_terms.py`.

    Attributes:
      date, command: when and how it was made.
      versions: package -> version.
      cluster: name of the cluster compiled for.
      checks: what was checked in the programs' text, in words.
      rows: the results.
    """

    date: str
    command: str
    versions: dict[str, str]
    cluster: str
    checks: tuple[str, ...]
    rows: tuple[MemoryTerm, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, each row with its saved_percent."""
        data = FILE.encode(self)
        for row, plain in zip(self.rows, data["rows"], strict=True):
            plain["saved_percent"] = round(row.saved_percent, 2)
        return data


FILE = FileFormat(MemoryRecord, "memory record", "record_version", RECORD_VERSION, "Make it again.")


def read_memory_record(path: str | Path) -> MemoryRecord:
    """Read a memory record.

    Raises:
      ValueError: the file is missing or not JSON, fields are missing or unknown, or figures are
        impossible.
    """
    context = f"{FILE.name} {path}"
    data = read_json(path, context, FILE.next_step)
    # saved_percent is not a field: it is checked against the row's bytes.
    rows = data.get("rows") if isinstance(data, dict) else None
    saved = [row.pop("saved_percent", None) for row in rows or () if isinstance(row, dict)]
    record = FILE.decode(data, context)
    for i, (row, percent) in enumerate(zip(record.rows, saved, strict=True)):
        if not isinstance(percent, int | float) or not math.isclose(
            percent, row.saved_percent, abs_tol=0.006
        ):
            raise ValueError(
                f"{context}: rows.{i}: saved_percent is {percent!r}, but its bytes give "
                f"{row.saved_percent:.2f}. The file was changed by hand. {FILE.next_step}"
            )
    return record
