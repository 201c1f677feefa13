"""The record of kernel runs on GPUs, and which kernels it validates.

The record is `record/*.jsonl` beside this file, written by `benchmarks/gpu_minutes.py`;
`record/README.md` has the schema.
"""

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from parallax.kernels.assembler import first_found, miscompiles_causal, numbers

RECORD = Path(__file__).parent / "record"
PLAIN = "plain"  # the cut of kernels that have one
RUN = "run"  # the `kind` of the lines that are a `Run`


class Kind(NamedTuple):
    """The properties, apart from shapes, that a kernel's code depends on.

    Attributes:
      head_dim: head dimension of attention; None for other operations.
      dtype: dtype of the products.
      is_causal: whether the mask is causal.
      cut: how the kernel partitions the work, by a name that the operation defines.
    """

    head_dim: int | None
    dtype: str
    is_causal: bool = False
    cut: str = PLAIN

    def describe(self) -> str:
        """Return a short description for messages."""
        width = "" if self.head_dim is None else f"head_dim {self.head_dim}, "
        return f"{width}{self.dtype}{', causal' * self.is_causal}, cut {self.cut!r}"


@dataclass(frozen=True)
class Run:
    """The record of one kernel that a GPU ran on one case: checked, timed, or both.

    Attributes:
      operation, implementation: names, as passed to `dispatch.choose`.
      case: name of the case, which gives the shapes.
      head_dim, dtype, is_causal, cut: see `Kind`.
      gpu: the device kind, as JAX names it.
      jax: version of JAX.
      assembler, assembler_source: its version and where it was found; None if unknown.
      date: year-month-day.
      errors: error of each output, as a share of its largest magnitude.
      is_right: within the bounds and repeatable; None if not checked.
      seconds: time of a whole call, all its kernels. kernel_seconds: of its Mosaic kernels alone.
      xla_seconds, cudnn_seconds: time of a whole call of XLA's and cuDNN's; None if not timed.
      why_not: why it did not run.
    """

    operation: str
    implementation: str
    case: str
    head_dim: int | None
    dtype: str
    is_causal: bool
    cut: str
    gpu: str
    jax: str
    assembler: str | None
    assembler_source: str | None
    date: str
    errors: tuple[float, ...] = ()
    is_right: bool | None = None
    seconds: float | None = None
    kernel_seconds: float | None = None
    xla_seconds: float | None = None
    cudnn_seconds: float | None = None
    why_not: str | None = None

    @property
    def kind(self) -> Kind:
        return Kind(self.head_dim, self.dtype, self.is_causal, self.cut)

    @property
    def counts(self) -> bool:
        """Whether the assembler is not known to miscompile this kind of kernel."""
        if not self.is_causal:
            return True
        return self.assembler is not None and not miscompiles_causal(self.assembler)

    def line(self) -> dict[str, Any]:
        """Return the run as one line of the record."""
        return {"kind": RUN, **asdict(self)}


def read_lines(folder: Path = RECORD) -> list[dict[str, Any]]:
    """Read all lines of the records in a folder, oldest file first."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def runs_of(lines: Iterable[dict[str, Any]]) -> tuple[Run, ...]:
    """Return the lines of a record whose kind is `RUN`, as `Run` values."""
    runs = [dict(line) for line in lines if line["kind"] == RUN]
    for line in runs:
        del line["kind"]
        line["errors"] = tuple(line["errors"])
    return tuple(Run(**line) for line in runs)


@functools.cache
def recorded() -> tuple[Run, ...]:
    """Return the runs in the record that ships with the package."""
    return runs_of(read_lines())


def is_validated(operation: str, implementation: str, kind: Kind, gpu: str) -> bool:
    """Return whether the record validates a kernel on this GPU kind with the installed JAX.

    Every checked run of the kind must be right, and the installed JAX no older than the oldest
    right run's and no newer than the newest's. No causal kernel is validated if the assembler on
    this machine miscompiles causal kernels.
    """
    runs = _runs(operation, implementation, kind, gpu)
    verdicts = [run.is_right for run in runs if run.is_right is not None]
    if not verdicts or not all(verdicts):
        return False
    versions = [numbers(run.jax) for run in runs if run.is_right]
    return min(versions) <= numbers(jax.__version__) <= max(versions) and not (
        kind.is_causal and _assembler_miscompiles()
    )


def share_of_xla(operation: str, implementation: str, kind: Kind, gpu: str) -> float | None:
    """Return the largest ratio of a call's time to XLA's over recorded cases; None if not timed."""
    shares = [
        run.seconds / run.xla_seconds
        for run in _runs(operation, implementation, kind, gpu)
        if run.seconds is not None and run.xla_seconds is not None
    ]
    return max(shares, default=None)


def is_recorded(operation: str) -> bool:
    """Return whether the record has a right run of any kernel of the operation."""
    return any(run.operation == operation and run.is_right for run in recorded())


def _runs(operation: str, implementation: str, kind: Kind, gpu: str) -> list[Run]:
    key = (operation, implementation, kind, gpu)
    runs = (run for run in recorded() if run.counts)
    return [run for run in runs if (run.operation, run.implementation, run.kind, run.gpu) == key]


@functools.cache
def _assembler_miscompiles() -> bool:
    assembler = first_found()
    return assembler is not None and miscompiles_causal(assembler.version)
