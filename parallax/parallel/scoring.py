"""How attention makes its scores and which of them it keeps: one value for all of its code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scoring:
    """The rule of one layer's scores.

    Attributes:
      is_causal: a query sees its own and earlier positions.
      window: tokens that a query sees, its own and those before it; None is all. Needs is_causal.
      scale: factor of the scores; None is head_dim ** -0.5.
      cap: scores s become cap * tanh(s / cap), before the mask; None leaves them.

    Raises:
      ValueError: a window without a causal mask, or of no token.
    """

    is_causal: bool = False
    window: int | None = None
    scale: float | None = None
    cap: float | None = None

    def __post_init__(self):
        if self.window is not None and (self.window < 1 or not self.is_causal):
            raise ValueError(
                f"Scoring: a window is at least 1 token and needs is_causal=True; got {self}."
            )

    def reached(self, length: int, devices: int) -> int:
        """Return how many devices before a query's own hold keys that it sees.

        Args:
          length: consecutive tokens of a device.
          devices: devices that split the sequence.
        """
        if self.window is None:
            return devices - 1
        return min(devices - 1, -(-(self.window - 1) // length))


BIDIRECTIONAL, CAUSAL = Scoring(), Scoring(is_causal=True)
