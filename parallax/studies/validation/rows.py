"""Tables of measured steps in their documented form: one row a measurement, SI units.

A table is a CSV file whose first line names the columns below, in any order; the columns with a
default may be missing. `#` starts a comment line.
"""

import csv
import dataclasses
import typing
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from parallax.codec import decode

Recompute = Literal["none", "selective", "layer"]


@dataclass(frozen=True)
class TrainingRow:
    """A measured training step.

    Attributes:
      model: name of a model beside the shipped tables, or a config.json, relative to the table.
      cluster: name of a cluster, such as h100_2x8.
      implementation: the software that ran it (`parallax list implementations`).
      data, tensor, pipeline, context, expert: degrees; all but expert multiply to the GPUs.
      microbatch: sequences of a microbatch on one replica.
      microbatches: microbatches per step and replica.
      seq_len: tokens per sequence.
      zero: what is sharded over data: nothing (0), the optimizer's state (1), gradients too (2),
        weights too (3).
      recompute: what the backward pass computes again.
      seconds: seconds per step; None if it was not timed.
      memory_bytes: bytes allocated on the fullest device; None if unknown.
      network: name of the network between nodes (`parallax list networks`); "" if unknown.
      source: who measured it.
      excluded: why a row is doubtful or has no figure; "" if it counts.
    """

    model: str
    cluster: str
    implementation: str
    data: int
    tensor: int
    pipeline: int
    microbatch: int
    microbatches: int
    seq_len: int
    seconds: float | None
    memory_bytes: float | None = None
    context: int = 1
    expert: int = 1
    zero: Literal[0, 1, 2, 3] = 0
    recompute: Recompute = "none"
    network: str = ""
    source: str = ""
    excluded: str = ""

    @property
    def key(self) -> str:
        """The setting, for the fold that it is in: rows of one setting are in one fold."""
        return (
            f"{self.model},{self.cluster},{self.data},{self.tensor},{self.pipeline},"
            f"{self.context},{self.expert},{self.microbatch},{self.microbatches},{self.seq_len}"
        )

    def __post_init__(self):
        _check_positive(self, "data", "tensor", "pipeline", "context", "expert", "microbatch",
                        "microbatches", "seq_len", "seconds", "memory_bytes")  # fmt: skip


@dataclass(frozen=True)
class ServingRow:
    """A measured load of equal requests, as many at a time as the batch, by one server.

    Attributes:
      model, cluster, implementation, source, excluded: as in TrainingRow.
      tensor, pipeline: degrees; their product is the GPUs.
      batch: requests in flight.
      prompt_len, output_len: tokens of a request.
      ttft_s: seconds to a request's first token; None if unknown.
      tpot_s: seconds per output token after it; None if unknown.
    """

    model: str
    cluster: str
    implementation: str
    tensor: int
    batch: int
    prompt_len: int
    output_len: int
    ttft_s: float | None
    tpot_s: float | None
    pipeline: int = 1
    source: str = ""
    excluded: str = ""

    @property
    def key(self) -> str:
        """The setting, for the fold that it is in."""
        return (
            f"{self.model},{self.cluster},{self.implementation},{self.tensor},{self.pipeline},"
            f"{self.batch},{self.prompt_len},{self.output_len}"
        )

    def __post_init__(self):
        _check_positive(self, "tensor", "pipeline", "batch", "prompt_len", "output_len", "ttft_s",
                        "tpot_s")  # fmt: skip


Row = TrainingRow | ServingRow


def read_table(path: Path) -> tuple[Row, ...]:
    """Read a table of training or of serving steps; its columns say which.

    Raises:
      ValueError: no such file, columns that are of neither kind, a row of another length, or a
        value that its column does not allow; names the file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ValueError(f"table {path}: {said}. Give a CSV file of measured steps.") from None
    numbered = [(n, line) for n, line in enumerate(text.splitlines(), 1)
                if line.strip() and not line.startswith("#")]  # fmt: skip
    if not numbered:
        raise ValueError(f"table {path.name}: it is empty, expected a line of column names.")
    (_, first), *rest = numbered
    header = next(csv.reader([first]))
    kind = _kind_of(path, header)
    rows = (
        _row(kind, header, next(csv.reader([line])), f"{path.name} line {n}") for n, line in rest
    )
    return tuple(_beside(row, path.parent) for row in rows)


def _kind_of(path: Path, header: list[str]) -> type[Row]:
    kind = ServingRow if {"ttft_s", "tpot_s"} & set(header) else TrainingRow
    known = {f.name: f.default is MISSING for f in fields(kind)}
    missing = [name for name, needed in known.items() if needed and name not in header]
    unknown = [name for name in header if name not in known]
    if missing or unknown or len(set(header)) < len(header):
        said = f"missing columns {missing}, unknown columns {unknown}"
        if not missing and not unknown:
            said = "a column is named twice"
        what = "serving" if kind is ServingRow else "training"
        raise ValueError(
            f"table {path.name}: {said}. A table of {what} steps has {', '.join(known)}."
        )
    return kind


def _beside(row: Row, folder: Path) -> Row:
    """Return the row with the path of its model, if that is a file or folder beside the table."""
    path = folder / row.model
    return dataclasses.replace(row, model=str(path)) if path.exists() else row


def _row(kind: type[Row], header: list[str], cells: list[str], context: str) -> Row:
    if len(cells) != len(header):
        raise ValueError(f"{context}: {len(cells)} cells under {len(header)} columns.")
    types = typing.get_type_hints(kind)
    data = {name: _value(types[name], text.strip(), f"{context}: {name}")
            for name, text in zip(header, cells, strict=True)}  # fmt: skip
    defaults = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    return decode(kind, defaults | data, context)


def _value(kind: Any, text: str, context: str) -> Any:
    """Return a cell as JSON data would hold it; the codec checks it against the column's type."""
    if kind is str or any(isinstance(choice, str) for choice in typing.get_args(kind)):
        return text
    if not text:
        return None
    try:
        return int(text) if text.lstrip("-").isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"{context} is {text!r}, expected a number.") from None


def _check_positive(row: Row, *names: str) -> None:
    for name in names:
        value = getattr(row, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}, expected a positive number.")
