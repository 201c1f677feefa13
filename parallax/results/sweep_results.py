"""The results of a sweep, as frozen values: one point per strategy and value of the swept axis."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from parallax.results.lens_results import Figure
from parallax.workload import Workload

Axis = Literal["devices", "seq_len", "batch"]


@dataclass(frozen=True)
class PointFigures:
    """The figures of one compiled point, per device and forward pass of the whole batch.

    Attributes:
      memory, usable: bytes that a device needs, and that are usable.
      wire, minimum: bytes leaving a device, and the closed form's minimum, None without one.
      gemm_flops: FLOPs of matrix products.
      step, tokens_per_s: modelled, with error bars. bound: the resource that sets the roofline.
      ledger_matches: whether the program sends what its closed form says.
      notes: caveats beside the figures.
      unvalidated: the parts of the time that no published measurement validates; "" if none.
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
        """The bytes sent over the minimum; None without a minimum or without anything to send."""
        if self.minimum is None or not self.minimum.value:
            return None
        return Figure(self.wire.value / self.minimum.value, "1", "compiled")


@dataclass(frozen=True)
class SweepPoint:
    """One strategy at one value of the swept axis.

    Attributes:
      strategy: name of the strategy.
      value: value of the axis.
      cluster, mesh: what it was compiled for; "" where that could not be made.
      workload: the workload as this strategy runs it; None where it cannot.
      found: the figures; None where the strategy cannot run this point.
      why_not: the reason in that case, in one line; "" otherwise.
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
    """Several strategies compiled and predicted along one axis.

    Attributes:
      axis: the quantity that is swept.
      values: its values, increasing.
      constant: what stays the same, in words.
      points: every strategy at every value, strategy by strategy.
    """

    axis: Axis
    values: tuple[int, ...]
    constant: str
    points: tuple[SweepPoint, ...]

    @property
    def strategies(self) -> tuple[str, ...]:
        """The names of the strategies, in the order asked for."""
        return tuple(dict.fromkeys(p.strategy for p in self.points))

    def of(self, strategy: str) -> Iterator[SweepPoint]:
        """Return the points of one strategy."""
        return (p for p in self.points if p.strategy == strategy)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each point that sends other bytes than its closed form.

        A point that does not fit or cannot run is what a sweep looks for, not a failure.
        """
        return tuple(
            f"{p.strategy} at {self.axis}={p.value} sends other bytes than its closed form"
            for p in self.points
            if p.found is not None and not p.found.ledger_matches
        )
