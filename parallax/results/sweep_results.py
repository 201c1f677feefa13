"""What a sweep found, as frozen values: one point a strategy and value of the swept axis."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from parallax.results.lens_results import Figure
from parallax.workload import Workload

Axis = Literal["devices", "seq_len", "batch"]


@dataclass(frozen=True)
class PointFigures:
    """Figures of one compiled point, of one device in one forward pass of the whole batch.

    Attributes:
      memory, usable: bytes a device needs, and may take.
      wire, minimum: bytes leaving a device, and the closed form's least; None where there is none.
      gemm_flops: FLOPs of matrix products.
      step, tokens_per_s: modelled, with error bars. `bound` is what sets the roofline.
      ledger_matches: the program sends what its closed form says.
      notes: what a reader must know beside the figures.
      unvalidated: what of the time no published measurement stands behind; "" if nothing.
    """

    memory: Figure
    usable: Figure
    wire: Figure
    minimum: Figure | None
    gemm_flops: Figure
    step: Figure
    tokens_per_s: Figure
    bound: str
    ledger_matches: bool
    notes: tuple[str, ...] = ()
    unvalidated: str = ""

    @property
    def fits(self) -> bool:
        return self.memory.value <= self.usable.value

    @property
    def ratio(self) -> Figure | None:
        """Bytes sent over the minimum; None where there is no minimum or nothing to send."""
        if self.minimum is None or not self.minimum.value:
            return None
        return Figure(self.wire.value / self.minimum.value, "1", "compiled")


@dataclass(frozen=True)
class SweepPoint:
    """One strategy at one value of the axis.

    Attributes:
      strategy: its name.
      value: of the axis.
      cluster, mesh: compiled for; "" where that could not be made.
      workload: as this strategy runs it; None where it cannot.
      found: the figures; None where the strategy cannot run this point.
      why_not: then the reason, in one line.
    """

    strategy: str
    value: int
    cluster: str = ""
    mesh: str = ""
    workload: Workload | None = None
    found: PointFigures | None = None
    why_not: str = ""


@dataclass(frozen=True)
class Sweep:
    """Strategies compiled and predicted along one axis.

    Attributes:
      axis: what changes.
      values: of it, increasing.
      constant: in words, what stays the same.
      points: strategy by strategy, each at every value.
    """

    axis: Axis
    values: tuple[int, ...]
    constant: str
    points: tuple[SweepPoint, ...]

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names, in the order asked for."""
        return tuple(dict.fromkeys(p.strategy for p in self.points))

    def of(self, strategy: str) -> Iterator[SweepPoint]:
        """The points of one strategy."""
        return (p for p in self.points if p.strategy == strategy)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each point that sends other bytes than its closed form.

        A point that does not fit or cannot run is what a sweep looks for, and no failure.
        """
        return tuple(
            f"{p.strategy} at {self.axis}={p.value} sends other bytes than its closed form"
            for p in self.points
            if p.found is not None and not p.found.ledger_matches
        )
