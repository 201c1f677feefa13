"""The split of a program's communication by the matrix products scheduled beside it.

These are facts of the compiled program only: "async, GEMMs between" does not say how much of a
transfer is hidden.
"""

from dataclasses import dataclass

from parallax.results.lens_results import Compilation


@dataclass(frozen=True)
class Exposure:
    """Bytes sent per device in one run, and executions of collectives, in three classes.

    Attributes:
      overlapped_bytes, overlapped_count: async, with matrix products between start and done.
      idle_bytes, idle_count: async, with no matrix product between.
      sync_bytes, sync_count: synchronous; the program waits.
      flops_between: FLOPs per device between starts and dones, over all executions; a product
        beside several transfers counts for each.
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
        """The number of collective executions in one run."""
        return self.overlapped_count + self.idle_count + self.sync_count

    @property
    def total_bytes(self) -> float:
        """The bytes sent per device in one run."""
        return self.overlapped_bytes + self.idle_bytes + self.sync_bytes

    @property
    def exposed_bytes(self) -> float:
        """The bytes sent while no matrix product is scheduled."""
        return self.idle_bytes + self.sync_bytes


def exposure(compilation: Compilation) -> Exposure:
    """Sort the communication of a compiled program into the three classes."""
    totals = {"overlapped": [0.0, 0], "idle": [0.0, 0], "sync": [0.0, 0]}
    flops = 0.0
    for c in compilation.collectives:
        kind = "overlapped" if c.async_with_compute else "idle" if c.is_async else "sync"
        totals[kind][0] += c.total_bytes
        totals[kind][1] += c.count
        flops += c.flops_between * c.count
    return Exposure(
        totals["overlapped"][0], int(totals["overlapped"][1]),
        totals["idle"][0], int(totals["idle"][1]),
        totals["sync"][0], int(totals["sync"][1]),
        flops,
    )  # fmt: skip
