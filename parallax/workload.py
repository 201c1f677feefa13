"""The workload of one call of a program: its batch, sequence length and microbatches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """The batch of one call: sequences of equal length, cut into microbatches.

    Attributes:
      batch: sequences over all devices.
      seq_len: tokens per sequence.
      microbatches: pieces that each device's share of the batch is cut into.
      packed: segment ids are given (packed or padded sequences).
      replayed: the routing is fixed: every token's experts are given, not chosen by the routers.
    """

    batch: int
    seq_len: int
    microbatches: int = 1
    packed: bool = False
    replayed: bool = False

    @property
    def tokens(self) -> int:
        return self.batch * self.seq_len
