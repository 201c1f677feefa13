"""Switching a layer's formats while requests run: prepared beforehand, done by a pointer."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax

from parallax.engine.deployment.chain import Chain, Prepared, compile_chain
from parallax.engine.deployment.layout import Layout
from parallax.engine.deployment.modelled import ModelledSwitch, modelled_switch
from parallax.engine.layer_formats import Formats, check_formats


@dataclass(frozen=True)
class Switch:
    """One layer's change of formats (tag: measured).

    Attributes:
      layer, device: the numbers of the layer and of its device.
      was, now: formats of attention and MLP before and after.
      reason: why it was switched, in words.
      number: the first new token that comes from `now`; None between calls of `generate`. The
        function differs from there on: tokens may differ from those without the switch.
      source: where the weights came from.
      copied_bytes: bytes copied to the device; 0 if they were there.
      seconds: time until the next pass reads them.
      compile_s: time to compile a program that was not compiled ahead.
      modelled: the same on a GPU.
    """

    layer: int
    device: int
    was: Formats
    now: Formats
    reason: str
    number: int | None
    source: Literal["device", "host"]
    copied_bytes: int
    seconds: float
    compile_s: float
    modelled: ModelledSwitch


def prepare_layers(
    chain: Chain, layers: Sequence[int], formats: Formats, where: Literal["device", "host"]
) -> int:
    """Compress layers beforehand, so that they can be switched.

    Args:
      where: "device" keeps the weights of both formats there; "host" copies at each switch.

    Returns:
      The bytes that devices hold in addition; `HostCopies.n_bytes` counts host copies.

    Raises:
      ValueError: there is no such layer, the formats are impossible or no smaller, or they exceed
        a device's budget.
      DeviceLost: a device turned out to be lost; nothing is prepared.
    """
    count, added, layers = chain.config.num_layers, 0, tuple(dict.fromkeys(layers))
    check_formats(chain.config, (formats,) * count)
    if where not in ("device", "host"):
        raise ValueError(f"prepare_switch: where must be device or host, got {where!r}.")
    for layer in layers:
        if not 0 <= layer < count:
            raise ValueError(f"prepare_switch: no layer {layer}; the model has {count}.")
        if layer in chain.prepared:
            raise ValueError(f"prepare_switch: layer {layer} is prepared already.")
        now = chain.layout.formats[layer]
        if weight_bytes(chain, formats) >= weight_bytes(chain, now):
            raise ValueError(
                f"prepare_switch: {formats} takes {weight_bytes(chain, formats)} bytes, layer "
                f"{layer} now {weight_bytes(chain, now)} in {now}. Give a stronger one."
            )
    if where == "device":
        _check_room(chain, layers, formats)
    for layer in layers:
        stored, owner = chain.host.layer(layer, formats), chain.owner(layer)
        if where == "device":
            placed = owner.put(("weights", layer, formats), stored)
            added += sum(x.nbytes for x in jax.tree.leaves(jax.block_until_ready(placed)))
    for layer in layers:
        chain.prepared[layer] = Prepared(chain.layout.formats[layer], formats, where)
    return added


def switch(chain: Chain, layer: int, reason: str, number: int | None = None) -> Switch:
    """Switch a prepared layer to its other formats.

    Raises:
      ValueError: the layer is not prepared, or its device has no room for the formats.
      DeviceLost: its device turned out to be lost; nothing is switched.
    """
    if layer not in chain.prepared:
        raise ValueError(
            f"switch: layer {layer} has no other formats prepared. Call prepare_switch first."
        )
    kept, was = chain.prepared[layer], chain.layout.formats[layer]
    now = kept.mild if was == kept.strong else kept.strong
    name, owner, copied = ("weights", layer, now), chain.owner(layer), 0
    owner.check()
    if not has_room(chain, layer, now):
        raise ValueError(
            f"switch: layer {layer} in {now} takes {weight_bytes(chain, now)} bytes, and device "
            f"{owner.number} would hold more than its budget of {chain.sizes.budget}. Leave it in "
            f"{was}."
        )
    stored = chain.host.layer(layer, now)
    start = time.perf_counter()
    if kept.where == "host":  # freed first: both together may exceed the budget
        owner.free(("weights", layer, was))
    if name not in owner:
        placed = jax.block_until_ready(owner.put(name, stored))
        copied = sum(x.nbytes for x in jax.tree.leaves(placed))
    chain.layout = chain.layout.with_formats(layer, now)
    seconds = time.perf_counter() - start
    return Switch(
        layer, owner.number, was, now, reason, number, "host" if copied else "device", copied,
        seconds, compile_chain(chain), modelled_switch(weight_bytes(chain, now)),
    )  # fmt: skip


def weight_bytes(chain: Chain, formats: Formats) -> int:
    """Return the bytes of one layer's weights in these formats."""
    return chain.sizes.footprints((formats,) * chain.config.num_layers)[0].weights


def has_room(chain: Chain, layer: int, formats: Formats) -> bool:
    """Return whether its device's budget allows a prepared layer in these formats.

    A loss may have given the device more layers than when this one was prepared. Raises DeviceLost.
    """
    budget, owner = chain.sizes.budget, chain.owner(layer)
    was = ("weights", layer, chain.layout.formats[layer])
    if budget is None or ("weights", layer, formats) in owner:
        return True
    freed = 0
    if chain.prepared[layer].where == "host" and was in owner:
        freed = weight_bytes(chain, was[2])
    held = _held_bytes(chain, owner.number) - freed
    return held + weight_bytes(chain, formats) <= budget


def by_saving(chain: Chain, layers: Sequence[int]) -> list[int]:
    """Return the prepared layers among these, largest saving first, the order of switching."""

    def saving(layer: int) -> int:
        kept = chain.prepared[layer]
        return weight_bytes(chain, kept.mild) - weight_bytes(chain, kept.strong)

    return sorted((i for i in layers if i in chain.prepared), key=lambda i: (-saving(i), i))


def switched_layouts(chain: Chain) -> tuple[Layout, ...]:
    """Return the layouts with one, two, ... prepared layers of every device switched in order."""
    layouts, layout, more = [], chain.layout, True
    for layer, kept in chain.prepared.items():
        layout = layout.with_formats(layer, kept.mild)
    while more:
        more = False
        layouts.append(layout)
        for group in layout.groups:
            mild = [
                i for i in by_saving(chain, group) if layout.formats[i] == chain.prepared[i].mild
            ]
            if mild:
                layout, more = layout.with_formats(mild[0], chain.prepared[mild[0]].strong), True
    return tuple(layouts)


def _check_room(chain: Chain, layers: Sequence[int], formats: Formats) -> None:
    if chain.sizes.budget is None:
        return
    each = weight_bytes(chain, formats)
    for device, group in zip(chain.layout.devices, chain.layout.groups, strict=True):
        held, count = _held_bytes(chain, device), sum(layer in group for layer in layers)
        if count and held + count * each > chain.sizes.budget:
            raise ValueError(
                f"prepare_switch: device {device} holds {held} bytes, {count} layer(s) prepared "
                f"there take {count * each} more, and its budget is {chain.sizes.budget}. Use "
                "where='host'."
            )


def _held_bytes(chain: Chain, device: int) -> int:
    """Return the bytes that a device of the chain holds with all its keys and values."""
    memory, footprints = chain.memories[device], chain.sizes.footprints(chain.layout.formats)
    kv = sum(footprints[i].kv for i in chain.layout.layers_on(device))
    return memory.n_bytes() - memory.n_bytes("kv") + kv
