"""A committed record of memory terms: what rematerialisation, donation and fusion save."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

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
        rows = [asdict(r) | {"saved_percent": round(r.saved_percent, 2)} for r in self.rows]
        return asdict(self) | {"record_version": RECORD_VERSION, "rows": rows}


def read_memory_record(path: str | Path) -> MemoryRecord:
    """Reads a record.

    Raises:
      ValueError: not there, not JSON, fields missing or unknown, or figures that cannot be.
    """
    where = f"memory record {path}"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}. Give the path of a readable file.") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}.") from None
    _require(data, {f.name for f in fields(MemoryRecord)} | {"record_version"}, where)
    if data.pop("record_version") != RECORD_VERSION:
        raise ValueError(f"{where}: expected record_version {RECORD_VERSION}. Make it again.")
    if not isinstance(data["rows"], list) or not isinstance(data["checks"], list):
        raise ValueError(f"{where}: rows and checks must be lists.")
    rows = tuple(_row(row, f"{where}: row {i}") for i, row in enumerate(data["rows"]))
    return MemoryRecord(**{**data, "rows": rows, "checks": tuple(data["checks"])})


def _row(data: Any, where: str) -> MemoryTerm:
    _require(data, {f.name for f in fields(MemoryTerm)} | {"saved_percent"}, where)
    saved = data.pop("saved_percent")
    sizes = data["before_bytes"], data["after_bytes"]
    if not all(type(size) is int and size >= 0 for size in sizes) or not sizes[0]:
        raise ValueError(f"{where}: bytes must be integers from 0 on, before above 0; got {sizes}.")
    if data["term"] not in get_args(Term) or data["counted"] not in get_args(Counted):
        raise ValueError(
            f"{where}: term {data['term']!r} or counted {data['counted']!r} is not known. Use one "
            f"of {', '.join(get_args(Term))}, and of {', '.join(get_args(Counted))}."
        )
    row = MemoryTerm(**data)
    if not isinstance(saved, int | float) or not math.isclose(
        saved, row.saved_percent, abs_tol=0.006
    ):
        raise ValueError(
            f"{where}: saved_percent is {saved!r}, but its bytes give {row.saved_percent:.2f}. The "
            "file was changed by hand: make it again."
        )
    return row


def _require(data: Any, expected: set[str], where: str) -> None:
    if not isinstance(data, dict) or set(data) != expected:
        odd = sorted(expected ^ set(data)) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{where}: {odd} missing or unknown. Expected {sorted(expected)}.")
