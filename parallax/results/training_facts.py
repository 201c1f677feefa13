"""How a strategy trains: what is sharded, the schedule, and the known parts of its memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Action(Protocol):
    """One stage's work in one tick."""

    @property
    def kind(self) -> str: ...

    @property
    def microbatch(self) -> int: ...

    @property
    def chunk(self) -> int: ...


class ScheduleTable(Protocol):
    """A schedule as `parallel.schedules.Schedule` has it."""

    @property
    def name(self) -> str: ...

    @property
    def stages(self) -> int: ...

    @property
    def microbatches(self) -> int: ...

    @property
    def virtual_stages(self) -> int: ...

    @property
    def rows(self) -> Sequence[Sequence[Action | None]]: ...

    @property
    def bubble(self) -> float: ...

    @property
    def peak_in_flight(self) -> int: ...

    @property
    def handoffs(self) -> int: ...


@dataclass(frozen=True)
class TrainingFacts:
    """The training choices of one strategy, and what follows from shapes alone (tag: derived).

    Attributes:
      weights: mesh axes over which weights are sharded between steps, and gathered for use.
      gather: when they are gathered: "layer" or "step".
      optimizer: mesh axes over which the optimizer's state is sharded.
      remat: what the backward pass of a layer recomputes.
      microbatches: microbatches whose gradients are added up, per device.
      schedule: the table of a pipeline; None without stages.
      parameter_bytes, optimizer_bytes: bytes per device of parameters, and of AdamW's moments.
      gradient_bytes: bytes per device of gradients, and of their sums over microbatches.
    """

    weights: tuple[str, ...]
    gather: str
    optimizer: tuple[str, ...]
    remat: str
    microbatches: int
    schedule: ScheduleTable | None
    parameter_bytes: float
    optimizer_bytes: float
    gradient_bytes: float

    def rest_of(self, total_bytes: float) -> float:
        """Return what a step needs beside parameters, moments and gradients, in bytes."""
        known = self.parameter_bytes + self.optimizer_bytes + self.gradient_bytes
        return max(0.0, total_bytes - known)
