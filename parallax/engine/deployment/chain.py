"""The chain of devices of a deployment, their contents, and one pass of sequences through it.

Names in a device's memory: ("weights", layer, formats), ("kv", microbatch, layer), ("first",) and
("last",) for embedding and head, ("x", microbatch) for activations on their way and ("chosen",
microbatch).
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from parallax.engine.deployment.layout import Layout, Sizes
from parallax.engine.deployment.memory import DeviceMemory
from parallax.engine.deployment.requests import Microbatch
from parallax.engine.deployment.stages import Phase, end_program, group_program
from parallax.engine.deployment.stored import HostCopies
from parallax.engine.layer_formats import Formats


@dataclass(frozen=True)
class Prepared:
    """The two formats that a prepared layer can switch between.

    Attributes:
      mild, strong: the formats of attention and MLP.
      where: "device" if both are kept on the layer's device; "host" if it has only the one in
        use and the host has the other.
    """

    mild: Formats
    strong: Formats
    where: Literal["device", "host"]


@dataclass
class Chain:
    """The state of a deployment.

    Attributes:
      host: host copies of all weights.
      sizes: the sizes and limits that placement uses.
      memories: one per device, in the order of device numbers.
      layout: which device holds which layers.
      spares: numbers of the spare devices, in the order in which they are used.
      known_lost: numbers of devices whose loss was noticed.
      rows, slots: sequences per microbatch, and tokens per sequence.
      moved: bytes copied to devices so far.
      prepared: layers that can be switched, with their formats.
    """

    host: HostCopies
    sizes: Sizes
    memories: tuple[DeviceMemory, ...]
    layout: Layout
    spares: tuple[int, ...]
    rows: int
    slots: int
    known_lost: set[int] = field(default_factory=set)
    moved: "Moved" = field(default_factory=lambda: Moved())
    prepared: dict[int, Prepared] = field(default_factory=dict)

    @property
    def config(self):
        """The model's config."""
        return self.host.config

    def working(self) -> tuple[DeviceMemory, ...]:
        """The devices that are not known to be lost."""
        return tuple(m for m in self.memories if m.number not in self.known_lost)

    def stage(self, number: int) -> DeviceMemory:
        """Return the device at a position in the chain."""
        return self.memories[self.layout.devices[number]]

    def owner(self, layer: int) -> DeviceMemory:
        """Return the device that holds a layer."""
        return self.memories[self.layout.device_of(layer)]


@dataclass(frozen=True)
class Moved:
    """Bytes copied to devices: from the host, and from other devices."""

    host_to_device: int = 0
    device_to_device: int = 0

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(self.host_to_device + other.host_to_device,
                     self.device_to_device + other.device_to_device)  # fmt: skip

    def __sub__(self, other: "Moved") -> "Moved":
        return Moved(self.host_to_device - other.host_to_device,
                     self.device_to_device - other.device_to_device)  # fmt: skip


def bring(chain: Chain, microbatches: Collection[Microbatch] = ()) -> None:
    """Copy everything to where the layout says.

    Weights come from a device that has them, else from the host; keys and values come from the
    device that has them, and lost ones are left out.

    Raises:
      DeviceLost: another device turned out to be lost; place the layers again, then call again.
    """
    layout, arrays = chain.layout, []

    def fetch(to: DeviceMemory, name: Any, from_host: Callable[[], Any] | None) -> None:
        if name in to:
            return
        for other in chain.working():
            if other is not to and name in other:
                arrays.append(placed := to.put(name, other.read(name)))
                chain.moved += Moved(device_to_device=_n_bytes(placed))
                return
        if from_host is not None:
            arrays.append(placed := to.put(name, from_host()))
            chain.moved += Moved(host_to_device=_n_bytes(placed))

    for which, number in (("first", 0), ("last", -1)):
        fetch(chain.stage(number), (which,), lambda which=which: chain.host.end(which))
    for layer in range(len(layout.formats)):
        owner = chain.owner(layer)
        for pair in _wanted(chain, layer):
            fetch(
                owner, ("weights", layer, pair),
                lambda layer=layer, pair=pair: chain.host.layer(layer, pair),
            )  # fmt: skip
        for microbatch in microbatches:
            if microbatch.prefilled:
                fetch(owner, ("kv", microbatch.number, layer), None)
    jax.block_until_ready(arrays)
    _tidy(chain)


def _wanted(chain: Chain, layer: int) -> tuple[Formats, ...]:
    """Return the formats in which a device holds a layer: the current one and any prepared."""
    now = chain.layout.formats[layer]
    if layer not in chain.prepared or chain.prepared[layer].where == "host":
        return (now,)
    kept = chain.prepared[layer]
    return tuple(dict.fromkeys((now, kept.mild, kept.strong)))


def extra_bytes(chain: Chain) -> tuple[int, ...]:
    """Return the bytes per layer of prepared weights, beside the weights in use."""

    def size(layer: int, pair: Formats) -> int:
        formats = chain.layout.with_formats(layer, pair).formats
        return chain.sizes.footprints(formats)[layer].weights

    return tuple(
        sum(size(layer, pair) for pair in _wanted(chain, layer)[1:])
        for layer in range(len(chain.layout.formats))
    )


def _tidy(chain: Chain) -> None:
    """Free on the chain's devices what is now elsewhere; spares keep what they have."""
    for number, device in enumerate(chain.layout.devices):
        memory, group = chain.memories[device], chain.layout.groups[number]
        for name in memory.names():
            kind = name[0]
            stale = kind == "weights" and (
                name[1] not in group or name[2] not in _wanted(chain, name[1])
            )
            stale = stale or (kind == "kv" and name[2] not in group)
            stale = stale or (kind == "first" and number != 0)
            if stale or (kind == "last" and number != len(chain.layout.devices) - 1):
                memory.free(name)


def compile_chain(chain: Chain, layout: Layout | None = None) -> float:
    """Compile the programs of a layout that are not compiled yet; return the seconds."""
    layout, start = layout or chain.layout, time.perf_counter()
    devices = [chain.memories[d].device for d in layout.devices]
    phases: tuple[Phase, ...] = ("prefill", "step")
    for phase in phases:
        end_program(chain.config, "first", chain.rows, chain.slots, phase, devices[0])
        for stage, device in enumerate(devices):
            formats = layout.formats_of(stage)
            group_program(chain.config, formats, chain.rows, chain.slots, phase, device)
        end_program(chain.config, "last", chain.rows, chain.slots, phase, devices[-1])
    return time.perf_counter() - start


def run_pass(
    chain: Chain,
    microbatch: Microbatch,
    phase: Phase,
    before_stage: Callable[[int], None] = lambda stage: None,
) -> None:
    """Run one microbatch through the chain; its next tokens stay on the last device.

    Args:
      phase: "prefill" runs all known tokens, "step" the last one of each sequence.
      before_stage: called before each device runs.

    Raises:
      DeviceLost: a device was lost during the pass, which can be run again safely.
    """
    at_B = microbatch.lengths - 1
    before_stage(0)
    _embed(chain, microbatch, phase)
    for stage in range(len(chain.layout.devices)):
        if stage:
            before_stage(stage)
        _run_stage(chain, microbatch, phase, stage, at_B)
    last = chain.stage(-1)
    program = end_program(chain.config, "last", chain.rows, chain.slots, phase, last.device)
    # A prefill has all positions, a step only one.
    rows_at = at_B if phase == "prefill" else np.zeros_like(at_B)
    end = last.read(("last",))
    x = last.pop(("x", microbatch.number))
    last.keep(("chosen", microbatch.number), program(end, x, jax.device_put(rows_at, last.device)))


def recompute(chain: Chain, microbatch: Microbatch) -> int:
    """Recompute the keys and values that no device has, from the tokens known so far.

    It does not wait for them, so that microbatches follow each other through the chain.

    Returns:
      The stages that were run; those before a lost layer's stage feed it.

    Raises:
      DeviceLost: another device turned out to be lost.
    """
    missing = {
        layer
        for layer in range(len(chain.layout.formats))
        if ("kv", microbatch.number, layer) not in chain.owner(layer)
    }
    if not microbatch.prefilled or not missing:
        return 0
    stages = chain.layout.devices.index(chain.layout.device_of(max(missing))) + 1
    _embed(chain, microbatch, "prefill")
    for stage in range(stages):
        _run_stage(chain, microbatch, "prefill", stage, microbatch.lengths - 1, kept=missing)
    chain.stage(stages - 1).free(("x", microbatch.number))
    return stages


def wait_for_kv(chain: Chain, microbatches: Collection[Microbatch]) -> None:
    """Wait until all keys and values are computed; raise DeviceLost if a device is lost."""
    jax.block_until_ready([
        chain.owner(layer).read(("kv", microbatch.number, layer))
        for microbatch in microbatches if microbatch.prefilled
        for layer in range(len(chain.layout.formats))
    ])  # fmt: skip


def _embed(chain: Chain, microbatch: Microbatch, phase: Phase) -> None:
    memory, at_B = chain.stage(0), microbatch.lengths - 1
    if phase == "prefill":
        tokens, positions = microbatch.tokens, np.arange(chain.slots, dtype=np.int32)[None]
    else:
        tokens, positions = microbatch.tokens[np.arange(chain.rows), at_B][:, None], at_B[:, None]
    program = end_program(chain.config, "first", chain.rows, chain.slots, phase, memory.device)
    tables = memory.read(("first",))
    # These are copies: the host writes new tokens while the device still reads.
    inputs = jax.device_put((tokens.copy(), positions.copy()), memory.device)
    memory.keep(("x", microbatch.number), program(tables, *inputs))


def _run_stage(
    chain: Chain, microbatch: Microbatch, phase: Phase, stage: int, at_B: np.ndarray,
    kept: Collection[int] | None = None,
) -> None:  # fmt: skip
    """Run one device's group; a prefill keeps keys and values of the layers `kept`, None is all."""
    memory, group = chain.stage(stage), chain.layout.groups[stage]
    before, name = chain.stage(max(0, stage - 1)), ("x", microbatch.number)
    x = before.pop(name) if before is memory else memory.put(name, before.pop(name))
    formats = chain.layout.formats_of(stage)
    program = group_program(chain.config, formats, chain.rows, chain.slots, phase, memory.device)
    layers = tuple(
        memory.read(("weights", layer, pair)) for layer, pair in zip(group, formats, strict=True)
    )
    if phase == "prefill":
        x, kv = program(layers, x)
    else:
        old = tuple(memory.pop(("kv", microbatch.number, layer)) for layer in group)
        x, kv = program(layers, old, x, jax.device_put(at_B, memory.device))
    for layer, pair in zip(group, kv, strict=True):
        if kept is None or layer in kept:
            memory.keep(("kv", microbatch.number, layer), pair)
    memory.keep(name, x)


def _n_bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))
