"""The facts of an explained program as plain values, which a report renders and a process sends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from parallax.explanations.findings import Finding
from parallax.explanations.source_lines import SourceLine
from parallax.meshes.cluster import Cluster


@dataclass(frozen=True)
class PeakBuffer:
    """A temporary array that is in memory at the peak.

    Attributes:
      what: the operation in the Python program.
      n_bytes: bytes per device.
      line: the user's line; None where the text has none.
    """

    what: str
    dtype: str
    n_bytes: int
    line: SourceLine | None


@dataclass(frozen=True)
class LineFlops:
    """The FLOPs of the matrix products of one source line, per device.

    Attributes:
      flops: what a device executes.
      needed: what the whole arrays need, divided by the devices; None where it is not known.
    """

    line: SourceLine
    flops: float
    needed: float | None


@dataclass(frozen=True)
class ArraySplit:
    """How an argument or result is split over the mesh in the compiled program.

    Attributes:
      name: the user's name, such as "params['w']".
      dims: the dims of the whole array; () for a scalar, or where only a device's part is known.
      local: the dims of one device's part.
      axes: for each dim, the mesh axes that split it.
      chosen_by: "you", or "XLA" where no sharding was given; "" where it is not known.
      n_bytes: bytes per device.
      donated: whether its memory may be reused.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    local: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    chosen_by: Literal["you", "XLA", ""]
    n_bytes: int
    donated: bool = False


@dataclass(frozen=True)
class TimedOperation:
    """One operation of the drawn schedule.

    Attributes:
      name: name of the instruction; products start with "GEMM".
      lane: "compute" or "communication".
      start_s, stop_s: position in the schedule, in modelled seconds at the GPU's peak rates.
      line: the user's line; None where the text has none.
    """

    name: str
    lane: str
    start_s: float
    stop_s: float
    line: SourceLine | None


@dataclass(frozen=True)
class Facts:
    """What is known about a program, and what would help it.

    Attributes:
      name: the module's name.
      cluster: the cluster that it is compiled for.
      axes: mesh axis -> size.
      rates: name and version of the cost model's constants.
      step_s: modelled seconds of one run; low_s, high_s: their 80 % interval, None for an end that
        nothing known bounds.
      exposed_s: modelled seconds of communication that no kernel hides.
      unvalidated: the part of the time that no published measurement validates; "" if none.
      memory_bytes: memory per device as the compiler planned it; 0 where only a text is known.
      sent_bytes: bytes that leave a device in one run.
      findings: what costs and what would help, most lost first.
      needed: what is sent besides, and why.
      notes: what was not tried, and other caveats.
      untried: how many changes that might help were not compiled; None for a text, where none are.
      buffers: the largest temporary arrays at the peak, largest first.
      flops: FLOPs by source line, most first.
      arguments, results: their splits.
      timeline: the schedule of the longest part of the program, and `timeline_of` says which.
    """

    name: str
    cluster: Cluster
    axes: Mapping[str, int]
    rates: str
    step_s: float
    low_s: float | None
    high_s: float | None
    exposed_s: float
    unvalidated: str
    memory_bytes: int
    sent_bytes: float
    findings: tuple[Finding, ...] = ()
    needed: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    untried: int | None = 0
    buffers: tuple[PeakBuffer, ...] = ()
    flops: tuple[LineFlops, ...] = ()
    arguments: tuple[ArraySplit, ...] = ()
    results: tuple[ArraySplit, ...] = ()
    timeline: tuple[TimedOperation, ...] = field(default=(), repr=False)
    timeline_of: str = ""

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.cluster.devices
