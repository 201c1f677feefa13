"""What of a program's communication the schedule lets run beside matrix products, and what not.

Facts of the compiled program only: "async with GEMMs between" does not say how much of a transfer
is hidden.
"""

from dataclasses import dataclass

from parallax.results.lens_results import Compilation


@dataclass(frozen=True)
class Exposure:
    """Bytes leaving a device in one run, and executions, in three classes.

    Attributes:
      overlapped_bytes, overlapped_count: async, with matrix products between start and done.
      idle_bytes, idle_count: async, with none between.
      sync_bytes, sync_count: the program waits.
      flops_between: FLOPs a device between starts and dones, all executions.
    """

    overlapped_bytes: float
    overlapped_count: int
    idle_bytes: float
    idle_count: int
    sync_bytes: float
    sync_count: int
    flops_between: float

    @property
    def count(self) -> int:
        """Executions of collectives in one run."""
        return self.overlapped_count + self.idle_count + self.sync_count

    @property
    def total_bytes(self) -> float:
        """Bytes leaving a device in one run."""
        return self.overlapped_bytes + self.idle_bytes + self.sync_bytes

    @property
    def exposed_bytes(self) -> float:
        """Bytes with no matrix product scheduled meanwhile."""
        return self.idle_bytes + self.sync_bytes


def exposure(compilation: Compilation) -> Exposure:
    """The three classes of a compiled program."""
    found = {"overlapped": [0.0, 0], "idle": [0.0, 0], "sync": [0.0, 0]}
    flops = 0.0
    for c in compilation.collectives:
        kind = "overlapped" if c.async_with_compute else "idle" if c.is_async else "sync"
        found[kind][0] += c.total_bytes
        found[kind][1] += c.count
        flops += c.flops_between * c.count
    return Exposure(
        found["overlapped"][0], int(found["overlapped"][1]),
        found["idle"][0], int(found["idle"][1]),
        found["sync"][0], int(found["sync"][1]),
        flops,
    )  # fmt: skip
