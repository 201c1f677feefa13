"""Cache pressure: when a layer is compressed more strongly, and when it is switched back."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from parallax.engine.deployment.chain import Chain
from parallax.engine.deployment.switching import Switch, by_saving, has_room, switch


@dataclass(frozen=True)
class Pressure:
    """The rule of when to switch: two thresholds, with no change between them, and patience.

    Attributes:
      low: a device's hit rate below this is pressure.
      high: a hit rate above this is no pressure.
      patience: consecutive readings before anything is done.
      cache_bytes: bytes per device, for the modelled rate: the share that fits of what a decoding
        step reads, weights and the keys and values of the tokens so far. It falls as texts grow.
        This assumes a cache that keeps what fits and bypasses the rest (pinned, for example). An
        LRU cache would fall to 0 as soon as the set is larger, which is how the cost model counts
        hits.
      reported: device number -> measured hit rate, in place of the modelled one.

    Raises:
      ValueError: a value is out of range, or not exactly one of cache_bytes and reported is given.
    """

    low: float = 0.90
    high: float = 0.97
    patience: int = 2
    cache_bytes: int | None = None
    reported: Callable[[int], float] | None = None

    def __post_init__(self):
        if not 0 < self.low < self.high <= 1 or self.patience < 1:
            raise ValueError(
                "Pressure: expected 0 < low < high <= 1 and patience of at least 1; got "
                f"{self.low}, {self.high}, {self.patience}."
            )
        if (self.cache_bytes is None) == (self.reported is None):
            raise ValueError(
                "Pressure: give cache_bytes (modelled rates) or reported, one of them."
            )
        if self.cache_bytes is not None and self.cache_bytes < 1:
            raise ValueError(f"Pressure: cache_bytes must be above 0, got {self.cache_bytes}.")


@dataclass(frozen=True)
class Reading:
    """A device's hit rate, and its source."""

    device: int
    hit_rate: float
    source: Literal["reported", "modelled"]


def step_bytes(chain: Chain, stage: int, tokens: int) -> int:
    """Return the bytes that a decoding step of all sequences reads on one device.

    Args:
      stage: the device's position in the chain.
      tokens: tokens known so far, over all sequences.
    """
    group, config = chain.layout.groups[stage], chain.config
    footprints = chain.sizes.footprints(chain.layout.formats)
    kv = tokens * config.cached_width * config.item_bytes
    return sum(footprints[i].weights + kv for i in group)


@dataclass
class Monitor:
    """The consecutive readings of each device so far.

    Attributes:
      pressure: when to switch.
      below, above: device -> consecutive readings below `low`, above `high`.
    """

    pressure: Pressure
    below: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    above: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))

    def read(self, chain: Chain, stage: int, tokens: int) -> Reading:
        """Read one device's hit rate; raise ValueError for a reported one outside of 0 to 1."""
        device, pressure = chain.layout.devices[stage], self.pressure
        if pressure.reported is None:
            assert pressure.cache_bytes is not None
            share = pressure.cache_bytes / step_bytes(chain, stage, tokens)
            return Reading(device, min(1.0, share), "modelled")
        rate = pressure.reported(device)
        if not 0 <= rate <= 1:
            raise ValueError(f"Pressure: device {device} reported a hit rate of {rate!r}.")
        return Reading(device, rate, "reported")

    def observe(self, chain: Chain, tokens: int, number: int | None = None) -> Iterator[Switch]:
        """Read every device once and switch at most one layer of each, lazily.

        Args:
          tokens: tokens known so far, over all sequences.
          number: the number of the next new token.

        Raises:
          DeviceLost: a device turned out to be lost.
        """
        for stage, device in enumerate(chain.layout.devices):
            rate = self.read(chain, stage, tokens)
            low, high = rate.hit_rate < self.pressure.low, rate.hit_rate > self.pressure.high
            self.below[device] = self.below[device] + 1 if low else 0
            self.above[device] = self.above[device] + 1 if high else 0
            order = by_saving(chain, chain.layout.groups[stage])
            strong = [i for i in order if chain.layout.formats[i] == chain.prepared[i].strong]
            assumed = ": the share that fits" if rate.source == "modelled" else ""
            said = f"hit rate {rate.hit_rate:.3f} ({rate.source}{assumed})"
            if self.below[device] >= self.pressure.patience:
                if mild := [i for i in order if i not in strong]:
                    why = f"{said} below {self.pressure.low}"
                    yield switch(chain, mild[0], why, number)
                    self.below[device] = 0
            elif (
                self.above[device] >= self.pressure.patience
                and strong
                and self._may_go_back(chain, stage, strong[-1], tokens)
            ):
                why = f"{said} above {self.pressure.high}"
                yield switch(chain, strong[-1], why, number)
                self.above[device] = 0

    def _may_go_back(self, chain: Chain, stage: int, layer: int, tokens: int) -> bool:
        """Return whether there is room and a modelled rate would stay above `low` after it."""
        if not has_room(chain, layer, chain.prepared[layer].mild):
            return False
        if self.pressure.cache_bytes is None:
            return True
        before = chain.layout
        chain.layout = before.with_formats(layer, chain.prepared[layer].mild)
        rate = self.read(chain, stage, tokens).hit_rate
        chain.layout = before
        return rate > self.pressure.low
