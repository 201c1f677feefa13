"""How evenly a strategy spreads a program over its devices, as a value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadBalance:
    """How evenly a strategy spreads a program (tag: derived).

    Attributes:
      replication: the replication factor of a weight, on average: 1 if every weight is on one
        device.
      bubble: ticks beyond the useful ones, as a share of these.
      padded_share: of the layers that devices execute, those of zeros that pad shorter stages.
    """

    replication: float
    bubble: float
    padded_share: float
