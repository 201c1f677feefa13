"""The load balance of a program: how evenly a strategy spreads it over the devices."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadBalance:
    """The load balance of a program over a strategy's devices (tag: derived).

    Attributes:
      replication: the average replication factor of a weight; 1 if every weight is on one device.
      bubble: ticks beyond the useful ones, as a share of the useful ones.
      padded_share: share of the executed layers that are zeros, which pad shorter stages.
    """

    replication: float
    bubble: float
    padded_share: float
