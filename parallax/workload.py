"""How much is run at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """What is run: batch sequences of seq_len tokens, cut into microbatches.

    Attributes:
      batch: sequences over all devices.
      seq_len: tokens of a sequence.
      microbatches: how many pieces the batch is cut into on each device.
      packed: segment ids are given (packed or padded sequences).
      replayed: every token's experts are given, instead of the routers' own choices.
    """

    batch: int
    seq_len: int
    microbatches: int = 1
    packed: bool = False
    replayed: bool = False

    @property
    def tokens(self) -> int:
        return self.batch * self.seq_len
