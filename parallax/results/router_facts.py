"""The statistics of routers, as the verify lens finds them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RouterFacts:
    """The statistics of the routers of a model with experts (tag: measured).

    Attributes:
      smallest_margin: the smallest gap in probability between the last expert a token chose and the
        next, over all tokens and layers in float64: rounding far below it flips no choice.
      load_max_over_mean: tokens of the busiest expert over the mean, in the worst layer.
      dropped: share of choices dropped for lack of capacity.
      flips: dtype below float64 -> share of choices that its own router would make differently;
        the routing is fixed there to the float64 model's.
    """

    smallest_margin: float
    load_max_over_mean: float
    dropped: float
    flips: dict[str, float]
