"""Failover: a lost device's group goes to a spare, or layers are placed again.

The loss is simulated; the recovery is real: weights are copied, programs compiled, keys and values
recomputed, and each part is timed.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass

from parallax.engine.deployment.chain import (
    Chain,
    bring,
    compile_chain,
    extra_bytes,
    recompute,
    wait_for_kv,
)
from parallax.engine.deployment.layout import Layout, place
from parallax.engine.deployment.memory import DeviceLost, DeviceMemory
from parallax.engine.deployment.modelled import ModelledRecovery, modelled_recovery
from parallax.engine.deployment.requests import Microbatch
from parallax.engine.deployment.stages import programs_compiled


@dataclass(frozen=True)
class Recovery:
    """One loss and its recovery (tag: measured, of a simulated loss).

    Attributes:
      lost: the lost devices, several if others turned out to be lost during the recovery.
      layers: the layers that were on them.
      spares: the spares that took a group; empty if layers were placed again.
      moved_layers: the layers whose device changed.
      detect_s: time from the loss until it was noticed.
      place_s: time to find the new layout.
      move_s: time to copy weights, and the keys and values that were left.
      compile_s: time to compile programs that were not compiled ahead.
      recompute_s: time to recompute lost keys and values.
      compiled_programs: the number of programs that were not compiled ahead.
      host_to_device_bytes, device_to_device_bytes: the bytes moved.
      recomputed_tokens: the known tokens whose keys and values were recomputed.
      recomputed_layers: the layers that were run for that.
      modelled: the same on a GPU.
      kind: says that the loss was simulated.
    """

    lost: tuple[int, ...]
    layers: tuple[int, ...]
    spares: tuple[int, ...]
    moved_layers: tuple[int, ...]
    detect_s: float
    place_s: float
    move_s: float
    compile_s: float
    recompute_s: float
    compiled_programs: int
    host_to_device_bytes: int
    device_to_device_bytes: int
    recomputed_tokens: int
    recomputed_layers: int
    modelled: ModelledRecovery
    kind: str = "simulated"

    @property
    def resume_s(self) -> float:
        """The seconds from the loss until requests resume."""
        return (
            self.detect_s + self.place_s + self.move_s + self.compile_s + self.recompute_s
        )  # fmt: skip


def recover(chain: Chain, lost: DeviceLost, microbatches: Collection[Microbatch] = ()) -> Recovery:
    """Restore the chain to working devices; running requests lose nothing.

    Args:
      chain: the chain, changed in place.
      lost: the error that was raised.
      microbatches: the running requests.

    Raises:
      ValueError: no device is left, or the layers do not fit the remaining ones.
    """
    now, lost_at = time.perf_counter(), chain.memories[lost.number].lost_at
    detect_s = 0.0 if lost_at is None else now - lost_at
    programs = programs_compiled()
    before, moved_before, gone = chain.layout, chain.moved, []
    times = {"place": 0.0, "move": 0.0, "compile": 0.0, "recompute": 0.0}
    stages, pending = 0, lost
    while True:
        try:
            start = time.perf_counter()
            gone.append(pending.number)
            chain.known_lost.add(pending.number)
            _leave_out(chain)
            start = _lap(times, "place", start)
            bring(chain, microbatches)
            start = _lap(times, "move", start)
            compile_chain(chain)
            start = _lap(times, "compile", start)
            stages = max([stages, *(recompute(chain, microbatch) for microbatch in microbatches)])
            if stages:
                wait_for_kv(chain, microbatches)
            _lap(times, "recompute", start)
            break
        except DeviceLost as another:
            pending = another
    moved = chain.moved - moved_before
    layers = tuple(i for d in gone for i in before.layers_on(d))
    # A microbatch whose prefill is not complete is prefilled again anyway.
    again = [microbatch for microbatch in microbatches if microbatch.prefilled and stages]
    tokens = int(sum(microbatch.lengths.sum() for microbatch in again))
    layers_run = chain.layout.stops[stages - 1] if stages else 0
    rows = sum(len(microbatch.lengths) for microbatch in again)
    longest = max([int(microbatch.lengths.max()) for microbatch in again], default=0)
    return Recovery(
        lost=tuple(gone),
        layers=layers,
        spares=tuple(d for d in chain.layout.devices if d not in before.devices),
        moved_layers=_changed(before, chain.layout),
        detect_s=detect_s,
        place_s=times["place"],
        move_s=times["move"],
        compile_s=times["compile"],
        recompute_s=times["recompute"],
        compiled_programs=programs_compiled() - programs,
        host_to_device_bytes=moved.host_to_device,
        device_to_device_bytes=moved.device_to_device,
        recomputed_tokens=tokens,
        recomputed_layers=layers_run,
        modelled=modelled_recovery(
            chain.config,
            moved.host_to_device,
            moved.device_to_device,
            [len(group) for group in chain.layout.groups[:stages]],
            rows,
            longest,
            microbatches=max(1, len(again)),
        ),
    )


def next_layout(chain: Chain, lost: int) -> tuple[Layout, tuple[int, ...]]:
    """Return the layout and spares without a device.

    Raises:
      ValueError: no device is left, or the layers do not fit the remaining ones.
    """
    layout = chain.layout
    gone = chain.known_lost | {lost}
    spares = tuple(d for d in chain.spares if d not in gone)
    if lost not in layout.devices:
        return layout, spares
    if spares:
        # Take the spare that already has most of its weights.
        wanted = [("weights", i, layout.formats[i]) for i in layout.layers_on(lost)]
        best = max(spares, key=lambda d: sum(name in chain.memories[d] for name in wanted))
        return layout.replaced(lost, best), tuple(d for d in spares if d != best)
    rest = tuple(d for d in layout.devices if d not in gone)
    held = {d: layout.layers_on(d) for d in rest}
    placed = place(chain.sizes, layout.formats, rest, held, extra_bytes(chain))
    return placed, tuple(d for d in rest if d not in placed.devices)


def likely_layouts(chain: Chain) -> tuple[Layout, ...]:
    """Return the distinct layouts after each single loss of a device of the chain."""
    layouts: dict[Layout, None] = {}
    for device in chain.layout.devices:
        try:
            layouts[next_layout(chain, device)[0]] = None
        except ValueError:
            continue  # a loss that cannot be recovered
    return tuple(layouts)


def _leave_out(chain: Chain) -> None:
    """Remove devices that are known to be lost from the chain and the spares."""
    chain.spares = tuple(d for d in chain.spares if d not in chain.known_lost)
    while gone := [d for d in chain.layout.devices if d in chain.known_lost]:
        chain.layout, chain.spares = next_layout(chain, gone[0])


def _changed(before: Layout, after: Layout) -> tuple[int, ...]:
    return tuple(
        i for i in range(len(before.formats)) if before.device_of(i) != after.device_of(i)
    )  # fmt: skip


def _lap(times: dict[str, float], what: str, start: float) -> float:
    now = time.perf_counter()
    times[what] += now - start
    return now


def readmit(chain: Chain, device: int, *, as_spare: bool) -> None:
    """Take back a repaired device, as a spare or with layers that are placed again."""
    chain.known_lost.discard(device)
    if as_spare:
        chain.spares = (*chain.spares, device)
        return
    devices = sorted({*chain.layout.devices, device})
    held = {d: chain.layout.layers_on(d) for d in devices}
    chain.layout = place(chain.sizes, chain.layout.formats, devices, held, extra_bytes(chain))


def replicate(chain: Chain, memory: DeviceMemory, layers: tuple[int, ...]) -> int:
    """Copy layers' weights to a spare; return the bytes that it then holds.

    Raises:
      ValueError: the device is not a spare, a layer does not exist, or they exceed its budget.
    """
    device = memory.number
    if device not in chain.spares:
        raise ValueError(f"replicate: device {device} is not a spare; spares: {chain.spares}.")
    if bad := [i for i in layers if not 0 <= i < chain.config.num_layers]:
        raise ValueError(f"replicate: no layer {bad[0]}; the model has {chain.config.num_layers}.")
    footprints = chain.sizes.footprints(chain.layout.formats)
    names = {i: ("weights", i, chain.layout.formats[i]) for i in layers}
    missing = [i for i in layers if names[i] not in memory]
    size = sum(footprints[i].weights for i in missing)
    held, budget = memory.n_bytes(), chain.sizes.budget
    if budget is not None and held + size > budget:
        raise ValueError(
            f"replicate: layers {layers} take {size} bytes more, device {device} holds {held} "
            f"and its budget is {budget}. Keep fewer copies there."
        )
    for layer in missing:
        memory.put(names[layer], chain.host.layer(layer, chain.layout.formats[layer]))
    return memory.n_bytes()
