"""The layout of a chain: which device holds which layers, in which formats."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from parallax.engine.deployment.stored import end_bytes
from parallax.engine.layer_formats import Formats
from parallax.models.config import ModelConfig
from parallax.placement import (
    Device,
    Footprint,
    Placement,
    greedy,
    layer_footprints,
    least_moved,
    optimal,
)

Rule = Literal["optimal", "greedy"]


@dataclass(frozen=True)
class Layout:
    """A chain of devices, each with a contiguous group of layers.

    Attributes:
      devices: numbers of the devices, in the order in which activations pass them.
      stops: device i holds the layers stops[i - 1] to stops[i], at least one.
      formats: those of every layer's attention and MLP.
    """

    devices: tuple[int, ...]
    stops: tuple[int, ...]
    formats: tuple[Formats, ...]

    @property
    def groups(self) -> tuple[range, ...]:
        """The layers of each device."""
        return tuple(range(a, b) for a, b in zip((0, *self.stops), self.stops, strict=False))

    def layers_on(self, device: int) -> range:
        """Return the layers on a device, none if it is not in the chain."""
        if device not in self.devices:
            return range(0)
        return self.groups[self.devices.index(device)]

    def device_of(self, layer: int) -> int:
        """Return the number of the device that holds a layer."""
        return next(d for d, group in zip(self.devices, self.groups, strict=True) if layer in group)

    def formats_of(self, stage: int) -> tuple[Formats, ...]:
        """Return the formats of every layer of a stage."""
        return tuple(self.formats[i] for i in self.groups[stage])

    def replaced(self, old: int, new: int) -> "Layout":
        """Return the layout in which another device has the old one's group."""
        return replace(self, devices=tuple(new if d == old else d for d in self.devices))

    def with_formats(self, layer: int, formats: Formats) -> "Layout":
        """Return the layout in which one layer has other formats."""
        changed = (*self.formats[:layer], formats, *self.formats[layer + 1 :])
        return replace(self, formats=changed)


@dataclass(frozen=True)
class Sizes:
    """The sizes and limits that placement uses.

    Attributes:
      config: the model.
      cached_tokens: tokens whose keys and values a layer holds, over all sequences.
      budget: bytes per device; None is no limit.
      rule: "optimal" (the fastest slowest group, and of these what moves least) or "greedy" (the
        papers': a device takes layers as long as they fit).
    """

    config: ModelConfig
    cached_tokens: int
    budget: int | None
    rule: Rule

    def footprints(self, formats: Sequence[Formats]) -> tuple[Footprint, ...]:
        """Return the bytes of every layer's weights, keys and values."""
        return layer_footprints(self.config, formats, cached_tokens=self.cached_tokens)


def place(
    sizes: Sizes,
    formats: tuple[Formats, ...],
    devices: Sequence[int],
    held: Mapping[int, Collection[int]] | None = None,
    extra: Sequence[int] | None = None,
) -> Layout:
    """Place layers on devices, in the order of device numbers.

    Args:
      sizes: the sizes and limits.
      formats: the formats of every layer.
      devices: numbers of the working devices.
      held: layers that devices already have; a layer that stays costs nothing to move.
      extra: bytes per layer beside its footprint.

    Raises:
      ValueError: there is no device, there are fewer layers than devices, or they do not fit.
    """
    if not devices:
        raise ValueError("Deployment: no device is left to hold the layers. Repair one.")
    footprints = sizes.footprints(formats)
    if sizes.rule == "optimal" and len(formats) < len(devices):
        raise ValueError(
            f"Deployment: {len(formats)} layers for {len(devices)} devices, and each holds one or "
            f"more. Use at most {len(formats)} devices, or keep the others as spares."
        )
    _check_largest(sizes, footprints)
    limits = _devices(sizes, len(devices))
    reads = [float(f.total) for f in footprints]
    totals = [a + b for a, b in zip(reads, extra or [0] * len(reads), strict=True)]
    if sizes.rule == "greedy":
        placement = greedy(totals, reads, limits)
        kept = [i for i, group in enumerate(placement.groups) if group]
        if kept[-1] != len(devices) - 1:  # the head is on an earlier device than assumed
            return place(sizes, formats, [devices[i] for i in kept], held, extra)
    else:
        placement = _evenest(
            sizes, totals, reads, limits, [(held or {}).get(d, ()) for d in devices]
        )
    return Layout(tuple(devices), placement.stops, formats)


def _evenest(sizes, totals, reads, limits, held) -> Placement:
    try:
        best = optimal(totals, reads, limits)
        return least_moved(totals, reads, limits, held, best.cost)
    except ValueError as error:
        raise ValueError(
            f"Deployment: {len(totals)} layers of {sum(totals):.6g} bytes do not fit "
            f"{len(limits)} devices of {sizes.budget} bytes each, of which the first also holds "
            f"{end_bytes(sizes.config, 'first')} and the last {end_bytes(sizes.config, 'last')} "
            f"bytes of embedding and head ({error}) Compress layers or raise the budget."
        ) from None


def _devices(sizes: Sizes, count: int) -> list[Device]:
    """Return the budgets of a chain whose ends hold tables beside their layers."""
    budgets = [math.inf if sizes.budget is None else float(sizes.budget)] * count
    for number, which in ((0, "first"), (-1, "last")):
        budgets[number] -= end_bytes(sizes.config, which)
        if budgets[number] <= 0:
            raise ValueError(
                f"Deployment: the {which} device's tables take "
                f"{end_bytes(sizes.config, which)} bytes, its budget is {sizes.budget}. Raise it."
            )
    return [Device(b) for b in budgets]


def _check_largest(sizes: Sizes, footprints: Sequence[Footprint]) -> None:
    if sizes.budget is None:
        return
    if sizes.budget < 1:
        raise ValueError(
            f"Deployment: budget {sizes.budget}: nothing fits into no bytes. Give at least one "
            "byte, or None for no limit."
        )
    number = max(range(len(footprints)), key=lambda i: footprints[i].total)
    layer = footprints[number]
    if layer.total > sizes.budget:
        raise ValueError(
            f"Deployment: layer {number} takes {layer.total} bytes (weights {layer.weights}, keys "
            f"and values {layer.kv}), a device has {sizes.budget}. Compress it, or serve fewer "
            "tokens."
        )
