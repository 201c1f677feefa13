"""A device is lost: its group goes to a spare, or layers are placed again; requests go on.

What is lost is simulated; what is done about it is not: weights are copied, programs compiled, keys
and values computed again, and each is timed.
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
    """One loss and what it took (tag: measured, of a simulated loss).

    Attributes:
      lost: devices, more than one where others turned out to be lost on the way.
      layers: that were on them.
      spares: that took a group; empty where layers were placed again.
      moved_layers: whose device is another than before.
      detect_s: from the loss until it was noticed.
      place_s: until the new layout was known.
      move_s: until weights, and keys and values that were left, were there.
      compile_s: for programs that were not compiled ahead.
      recompute_s: for lost keys and values.
      compiled_programs: that were not compiled ahead.
      host_to_device_bytes, device_to_device_bytes: moved.
      recomputed_tokens: known tokens whose keys and values were computed again.
      recomputed_layers: that were run for it.
      modelled: the same on a GPU.
      kind: nothing real was broken.
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
        """From the loss until requests go on."""
        return (
            self.detect_s + self.place_s + self.move_s + self.compile_s + self.recompute_s
        )  # fmt: skip


def recover(chain: Chain, lost: DeviceLost, microbatches: Collection[Microbatch] = ()) -> Recovery:
    """Brings the chain back to where all its devices work; running requests lose nothing.

    Args:
      chain: changed in place.
      lost: what was raised.
      microbatches: running requests.

    Raises:
      ValueError: no device is left, or the layers do not fit those that are.
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
    # A microbatch whose prefill is not through is prefilled once more anyway.
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
    """The layout and spares once a device is left out.

    Raises:
      ValueError: no device is left, or the layers do not fit those that are.
    """
    layout = chain.layout
    gone = chain.known_lost | {lost}
    spares = tuple(d for d in chain.spares if d not in gone)
    if lost not in layout.devices:
        return layout, spares
    if spares:
        # The spare that has the most of its weights already.
        wanted = [("weights", i, layout.formats[i]) for i in layout.layers_on(lost)]
        best = max(spares, key=lambda d: sum(name in chain.memories[d] for name in wanted))
        return layout.replaced(lost, best), tuple(d for d in spares if d != best)
    rest = tuple(d for d in layout.devices if d not in gone)
    held = {d: layout.layers_on(d) for d in rest}
    placed = place(chain.sizes, layout.formats, rest, held, extra_bytes(chain))
    return placed, tuple(d for d in rest if d not in placed.devices)


def likely_layouts(chain: Chain) -> tuple[Layout, ...]:
    """The layouts after each single loss of a device of the chain, each once."""
    found: dict[Layout, None] = {}
    for device in chain.layout.devices:
        try:
            found[next_layout(chain, device)[0]] = None
        except ValueError:
            continue  # a loss that nothing can be done about
    return tuple(found)


def _leave_out(chain: Chain) -> None:
    """Takes devices that are known to be lost out of the chain and the spares."""
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
    """Takes a repaired device back: as a spare, or with layers that are placed again."""
    chain.known_lost.discard(device)
    if as_spare:
        chain.spares = (*chain.spares, device)
        return
    devices = sorted({*chain.layout.devices, device})
    held = {d: chain.layout.layers_on(d) for d in devices}
    chain.layout = place(chain.sizes, chain.layout.formats, devices, held, extra_bytes(chain))


def replicate(chain: Chain, memory: DeviceMemory, layers: tuple[int, ...]) -> int:
    """Puts copies of layers' weights on a spare. Returns the bytes that it holds then.

    Raises:
      ValueError: a device that is no spare, no such layer, or more than its budget.
    """
    device = memory.number
    if device not in chain.spares:
        raise ValueError(f"replicate: device {device} is no spare; spares: {chain.spares}.")
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
