"""What a profile of a step found: measured against modelled time, operation by operation."""

from collections.abc import Mapping
from dataclasses import dataclass, field

LARGEST = 10  # rows that a report shows


@dataclass(frozen=True)
class OperationTime:
    """One operation of the compiled program. Seconds are those of a device in one step.

    Attributes:
      name, opcode: of the HLO instruction.
      source: file and line of the Python program, "" where the text has none.
      op_name: JAX's name stack of it.
      executions: how often a step runs it, by the program's trip counts; None where they depend
        on data.
      launches: events of it in the trace, per device and step.
      measured_s: its own time, without that of operations nested in it.
      modelled_s: the cost model's time; None where the program is not priced.
    """

    name: str
    opcode: str
    source: str
    op_name: str
    executions: float | None
    launches: float
    measured_s: float
    modelled_s: float | None = None

    @property
    def error_s(self) -> float | None:
        """Modelled minus measured seconds; None without a modelled time."""
        return None if self.modelled_s is None else self.modelled_s - self.measured_s


@dataclass(frozen=True)
class OperationProfile:
    """A profiled step, joined with its compiled program.

    Seconds are means over the steps and over the devices that the trace holds, the devices of this
    process.

    Attributes:
      trace: path of the XSpace file that was read.
      device: kind of the devices. devices: number of devices in the trace. steps: steps profiled.
      operations: the operations, largest error first; largest time first without modelled times.
      unattributed: name of an event -> seconds, for device time that is no operation's.
      runtime: name -> seconds of the host's threads between operations, which is no device time;
        on CPUs alone.
      busy_s: time in which a device ran anything. span_s: from its first event to its last one.
      rates: what the modelled times are of; "" without them.
      notes: caveats, one line each.
    """

    trace: str
    device: str
    devices: int
    steps: int
    operations: tuple[OperationTime, ...]
    unattributed: Mapping[str, float]
    busy_s: float
    span_s: float
    runtime: Mapping[str, float] = field(default_factory=dict)
    rates: str = ""
    notes: tuple[str, ...] = ()

    @property
    def attributed_s(self) -> float:
        """The device time of operations of the compiled program."""
        return sum(o.measured_s for o in self.operations)

    @property
    def device_s(self) -> float:
        """All device time in the trace."""
        return self.attributed_s + sum(self.unattributed.values())

    @property
    def attributed_share(self) -> float:
        """The share of device time attributed to operations of the compiled program, 0 to 1."""
        return self.attributed_s / self.device_s if self.device_s else 0.0

    @property
    def modelled_s(self) -> float | None:
        """The sum of all modelled times, hidden ones too; None without modelled times."""
        return sum(o.modelled_s or 0.0 for o in self.operations) if self.rates else None

    @property
    def largest(self) -> tuple[OperationTime, ...]:
        """The operations with the largest errors, or times, that a report shows."""
        return self.operations[:LARGEST]
