"""The record of what GPUs have run, and which kernels it validates.

`record/*.jsonl` beside this file, written by `benchmarks/gpu_minutes.py`; `record/README.md` has
the schema.
"""

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax

from parallax.kernels.assembler import first_found, miscompiles_causal

RECORD = Path(__file__).parent / "record"
RUN = "run"  # the `kind` of the lines that are a `Run`


class Kind(NamedTuple):
    """What a kernel's code depends on, apart from the shapes.

    Attributes:
      head_dim: of attention; None for others.
      dtype: of the products.
      is_causal: the mask.
      cut: how the kernel divides the work, a name of the operation's own.
    """

    head_dim: int | None
    dtype: str
    is_causal: bool = False
    cut: str = "plain"

    def describe(self) -> str:
        """In a few words."""
        width = "" if self.head_dim is None else f"head_dim {self.head_dim}, "
        return f"{width}{self.dtype}{', causal' * self.is_causal}, cut {self.cut!r}"


@dataclass(frozen=True)
class Run:
    """One kernel that a GPU ran on one case: checked, timed, or both.

    Attributes:
      operation, implementation: names, as `dispatch.choose` has them.
      case: shapes, by name.
      head_dim, dtype, is_causal, cut: see `Kind`.
      gpu: the device kind, as JAX calls it.
      jax: the version.
      assembler, assembler_source: version and where it was found; None: unknown.
      date: year-month-day.
      errors: of each output, a share of its largest magnitude.
      is_right: within the bounds and repeatable; None: not checked.
      seconds: of a whole call, all its kernels. kernel_seconds: of its Mosaic kernels alone.
      xla_seconds, cudnn_seconds: of a whole call of theirs. None: not timed.
      why_not: what kept it from running.
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
        """Whether the assembler is one that is not known to break this kind."""
        if not self.is_causal:
            return True
        return self.assembler is not None and not miscompiles_causal(self.assembler)

    def line(self) -> dict[str, Any]:
        """As a line of the record."""
        return {"kind": RUN, **asdict(self)}


def read_lines(folder: Path = RECORD) -> list[dict[str, Any]]:
    """All lines of a folder's records, the oldest file first."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def runs_of(lines: Iterable[dict[str, Any]]) -> tuple[Run, ...]:
    """The lines that are a `Run`."""
    found = [dict(line) for line in lines if line["kind"] == RUN]
    for line in found:
        del line["kind"]
        line["errors"] = tuple(line["errors"])
    return tuple(Run(**line) for line in found)


@functools.cache
def recorded() -> tuple[Run, ...]:
    """What the package's own record says."""
    return runs_of(read_lines())


def is_validated(operation: str, implementation: str, kind: Kind, gpu: str) -> bool:
    """Whether this GPU kind was seen to run the kernel right, with JAX as it is installed here.

    Every checked run of the kind has to be right, the installed JAX no older than the oldest that
    was right and no newer than the newest; and where the assembler miscompiles a causal kernel,
    none is validated.
    """
    runs = _runs(operation, implementation, kind, gpu)
    verdicts = [run.is_right for run in runs if run.is_right is not None]
    if not verdicts or not all(verdicts):
        return False
    versions = [_numbers(run.jax) for run in runs if run.is_right]
    return min(versions) <= _numbers(jax.__version__) <= max(versions) and not (
        kind.is_causal and _assembler_miscompiles()
    )


def share_of_xla(operation: str, implementation: str, kind: Kind, gpu: str) -> float | None:
    """The largest time of a call as a share of XLA's, over the recorded cases; None: not timed."""
    shares = [
        run.seconds / run.xla_seconds
        for run in _runs(operation, implementation, kind, gpu)
        if run.seconds is not None and run.xla_seconds is not None
    ]
    return max(shares, default=None)


def is_recorded(operation: str) -> bool:
    """Whether any GPU was seen to run any kernel of the operation right."""
    return any(run.operation == operation and run.is_right for run in recorded())


def _runs(operation: str, implementation: str, kind: Kind, gpu: str) -> list[Run]:
    key = (operation, implementation, kind, gpu)
    return [
        run
        for run in recorded()
        if (run.operation, run.implementation, run.kind, run.gpu) == key and run.counts
    ]


@functools.cache
def _assembler_miscompiles() -> bool:
    assembler = first_found()
    return assembler is not None and miscompiles_causal(assembler.version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(x) for x in version.split(".") if x.isdigit())
