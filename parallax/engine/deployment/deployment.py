"""Layer-wise serving: every device holds a group of layers and runs its own program."""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx

from parallax.distributed.devices import ordered_devices
from parallax.engine.deployment.chain import Chain, bring, compile_chain, run_pass
from parallax.engine.deployment.failover import (
    Recovery,
    likely_layouts,
    readmit,
    recover,
    replicate,
)
from parallax.engine.deployment.first import first_layout
from parallax.engine.deployment.layout import Layout, Rule
from parallax.engine.deployment.memory import DeviceLost, DeviceMemory
from parallax.engine.deployment.pressure import Monitor, Pressure
from parallax.engine.deployment.requests import (
    Event,
    Microbatch,
    PassInterrupted,
    Progress,
    add_tokens,
    microbatches_of,
)
from parallax.engine.deployment.served import Served
from parallax.engine.deployment.stored import HostCopies
from parallax.engine.deployment.switching import (
    Switch,
    prepare_layers,
    switch,
    switched_layouts,
)
from parallax.engine.generate import Continuation, OnToken, check_prompts
from parallax.engine.latency import Latency
from parallax.engine.layer_formats import Formats
from parallax.models.config import ModelConfig


class Deployment:
    """A model on a chain of devices, contiguous groups of layers each, that survives losses.

    Unlike a `Strategy`'s one program, every device runs a program of its own: groups may have
    unequal depth and every layer its own formats. Activations go from device to device; the
    greedy tokens are those of the unsharded model.

    Args:
      config: a causal model.
      params: its whole parameters, as `Transformer` has them: dense, or those of a config with
        `compression`. For a folder that `px.compress` wrote see `Deployment.load`.
      devices: jax.Devices; None takes all of this process.
      batch: sequences at once, over all microbatches.
      max_len: tokens per sequence, prompt included. Prompts are padded to it: one program serves
        the prefill and the recomputation after a loss.
      microbatches: pieces of the batch; while one is on a device, the next is on the previous one.
      spares: the number of devices (the last ones) that wait.
      budget: bytes of weights, keys and values that a device may hold; None is no limit.
      formats: those of all matrices, or each layer's (attention, MLP); None is the model's dtype,
        or what compressed parameters are stored in.
      rule: "optimal" placement, or the papers' "greedy", whose empty devices become spares.

    Raises:
      ValueError: sizes, formats or budgets are impossible, or there are fewer layers than devices.

    Cost: copies all weights to the host and, once, to the devices. Compiles on first use, or in
      `prepare`.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: nnx.State | HostCopies,
        devices: Sequence[Any] | None = None,
        *,
        batch: int,
        max_len: int,
        microbatches: int = 1,
        spares: int = 0,
        budget: int | None = None,
        formats: str | Sequence[Formats] | None = None,
        rule: Rule = "optimal",
    ):
        devices = ordered_devices() if devices is None else list(devices)
        if formats is None and isinstance(params, HostCopies):
            formats = params.stored
        sizes, layout = first_layout(
            config, len(devices), batch=batch, max_len=max_len, microbatches=microbatches,
            spares=spares, budget=budget, formats=formats, rule=rule,
        )  # fmt: skip
        waiting = tuple(i for i in range(len(devices)) if i not in layout.devices)
        self.chain = Chain(
            host=params if isinstance(params, HostCopies) else HostCopies.of(config, params),
            sizes=sizes,
            memories=tuple(DeviceMemory(i, d) for i, d in enumerate(devices)),
            layout=layout,
            spares=waiting,
            rows=batch // microbatches,
            slots=max_len,
        )
        self._spares = len(waiting)
        self._recoveries: list[Recovery] = []
        self._switches: list[Switch] = []
        self._running: Sequence[Microbatch] = ()
        bring(self.chain)

    @classmethod
    def load(
        cls, folder: str | Path, devices: Sequence[Any] | None = None, **options: Any
    ) -> "Deployment":
        """Load a folder that `px.compress` wrote, every layer in the formats it is stored in.

        Args:
          folder: the folder as written; nothing is compressed again. There are no dense weights,
            so layers cannot be switched to other formats.
          devices, options: as `Deployment` takes them, without `formats`.

        Raises:
          ValueError: the folder is missing, incomplete or damaged, or it cannot be deployed.
        """
        host = HostCopies.load(folder)
        return cls(host.config, host, devices, **options)

    @property
    def layout(self) -> Layout:
        """The current layout: which device holds which layers."""
        return self.chain.layout

    @property
    def spares(self) -> tuple[int, ...]:
        """The numbers of the spare devices."""
        return self.chain.spares

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        """The recoveries from all losses so far."""
        return tuple(self._recoveries)

    @property
    def switches(self) -> tuple[Switch, ...]:
        """The switches of all layers so far."""
        return tuple(self._switches)

    def device_bytes(self, kind: str | None = None) -> tuple[int, ...]:
        """Return the bytes that each device holds now; 0 for a lost one.

        Args:
          kind: "weights", "kv", "first" or "last" (embedding, head); None is all.
        """
        return tuple(memory.n_bytes(kind) for memory in self.chain.memories)

    def prepare(self) -> float:
        """Compile what runs now, after each single loss, and after each switch in turn.

        Returns:
          The seconds that compiling took.
        """
        start = time.perf_counter()
        layouts = (self.layout, *likely_layouts(self.chain), *switched_layouts(self.chain))
        for layout in layouts:
            compile_chain(self.chain, layout)
        return time.perf_counter() - start

    def prepare_switch(
        self, layers: Iterable[int], formats: Formats, where: Literal["device", "host"] = "device"
    ) -> int:
        """Compress layers beforehand, so that pressure can switch them to these formats and back.

        Args:
          where: "device" keeps both formats there; "host" copies the other one at each switch.

        Returns:
          The bytes that devices hold in addition.

        Raises:
          ValueError: there is no such layer, the formats are no smaller, or they exceed a budget.
        """
        self.settle()
        return prepare_layers(self.chain, tuple(layers), formats, where)

    def switch(self, layer: int, reason: str = "asked for", number: int | None = None) -> Switch:
        """Switch a prepared layer to its other formats; may be called from `on_event`.

        A loss that is noticed meanwhile is recovered first.

        Args:
          number: the number of the first new token after it, for the record.

        Raises:
          ValueError: the layer is not prepared, or its device has no room for the formats.
        """
        while True:
            try:
                self._switches.append(switch(self.chain, layer, reason, number))
                return self._switches[-1]
            except DeviceLost as lost:
                self._recover(lost)

    def lose(self, device: int) -> None:
        """Simulate the loss of a device: its next use finds the buffers deleted and is refused.

        Raises:
          ValueError: there is no such device, or it is lost already.
        """
        self._memory(device).lose()

    def repair(self, device: int) -> None:
        """Take back a lost device between calls, empty: as a missing spare, else with layers.

        Raises:
          ValueError: there is no such device, or it is not lost.
        """
        self._memory(device).repair()
        if (
            device in self.chain.known_lost
        ):  # otherwise the loss went unnoticed: what it held is copied back
            readmit(self.chain, device, as_spare=len(self.chain.spares) < self._spares)
        self.settle()

    def replicate(self, layers: Iterable[int], device: int) -> int:
        """Keep copies of layers' weights on a spare, so that they need not move if it takes over.

        Returns:
          The bytes that it holds now.

        Raises:
          ValueError: the device is not a spare, a layer does not exist, or they exceed its budget.
        """
        memory = self._memory(device)
        self.settle()
        return replicate(self.chain, memory, tuple(dict.fromkeys(layers)))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_tokens: Sequence[int] = (),
        pressure: Pressure | None = None,
        on_token: OnToken = lambda prompt, token: None,
        on_event: Callable[[Event], None] = lambda event: None,
    ) -> Served:
        """Continue every prompt greedily, whatever devices are lost meanwhile.

        Losses change no token in float64, where this is tested. In lower precision they may change
        near-ties: lost keys and values are recomputed in one pass over all known tokens, which
        rounds differently from the steps that made them.

        Args:
          prompts: token ids, at most `batch` of them.
          max_new_tokens: the most new tokens per sequence.
          stop_tokens: ids that end a sequence; not part of the result.
          pressure: when prepared layers are switched; None means never.
          on_token: called with (number of the prompt, token).
          on_event: called before each device runs; it may call `lose` and `switch`. It is called
            again in a pass that is repeated after a loss.

        Raises:
          ValueError: the prompts are invalid, or the remaining devices cannot hold the layers.
        """
        chain = self.chain
        check_prompts(chain.config, prompts, max_new_tokens, chain.slots, stop_tokens)
        microbatches = microbatches_of(prompts, chain.rows, chain.slots)
        recoveries, switches = len(self._recoveries), len(self._switches)
        monitor = None if pressure is None else Monitor(pressure)
        compile_s = self.settle()
        if len(prompts) > self.chain.sizes.cached_tokens // chain.slots:
            raise ValueError(
                f"{len(prompts)} prompts, the deployment has room for "
                f"{chain.sizes.cached_tokens // chain.slots}. Raise batch, or call it again."
            )
        progress = Progress([[] for _ in prompts])
        self._running = microbatches
        try:
            times = self._serve(
                progress, max_new_tokens, frozenset(stop_tokens), monitor, on_token, on_event
            )
        finally:
            self._running = ()
            for memory in chain.working():
                for name in memory.names():
                    if name[0] in ("kv", "x", "chosen"):
                        memory.free(name)
        latency = Latency(
            prompt_tokens=sum(map(len, prompts)),
            new_tokens=sum(map(len, progress.new)),
            ttft_s=times[0],
            itl_s=tuple(b - a for a, b in itertools.pairwise(times)),
            total_s=times[-1],
            compile_s=compile_s,
        )
        continuations = tuple(
            Continuation(tuple(tokens), progress.finished[i])
            for i, tokens in enumerate(progress.new)
        )
        return Served(continuations, latency, tuple(self._recoveries[recoveries:]),
                      tuple(self._switches[switches:]))  # fmt: skip

    def _serve(
        self,
        progress: Progress,
        max_new_tokens: int,
        stops: frozenset[int],
        monitor: Monitor | None,
        on_token: OnToken,
        on_event: Callable[[Event], None],
    ) -> list[float]:
        """Serve until no request is running; return the seconds until each step was done."""
        start, times = time.perf_counter(), []
        for number in itertools.count():
            running = [m for m in self._running if any(progress.runs(m))]
            if not running:
                return times
            for microbatch in running:
                self._pass(microbatch, number, on_event)
            for microbatch in running:
                chosen = self._chosen(microbatch, number, on_event)
                for prompt, token in add_tokens(
                    microbatch, chosen, progress, max_new_tokens, stops
                ):
                    on_token(prompt, token)
            times.append(time.perf_counter() - start)
            if monitor is not None:
                self._relieve(monitor, number + 1)
        raise AssertionError("count() does not end")

    def _pass(self, microbatch: Microbatch, number: int, on_event) -> None:
        """Run a pass until it completes; a pass that a loss interrupted is run again."""

        def before(stage: int) -> None:
            recoveries = len(self._recoveries)
            on_event(Event(number, microbatch.number, stage))
            if len(self._recoveries) > recoveries:  # a loss in this pass: layers have moved
                raise PassInterrupted

        phase = "step" if microbatch.prefilled else "prefill"
        while True:
            try:
                run_pass(self.chain, microbatch, phase, before)
            except DeviceLost as lost:
                self._recover(lost)
            except PassInterrupted:
                continue
            else:
                microbatch.prefilled = True
                return

    def _chosen(self, microbatch: Microbatch, number: int, on_event) -> np.ndarray:
        """Return the next tokens of a microbatch whose pass is done."""
        name = ("chosen", microbatch.number)
        while True:
            try:
                last = self.chain.stage(-1)
                if name in last:
                    return np.asarray(last.pop(name))
            except DeviceLost as lost:
                self._recover(lost)
            self._pass(microbatch, number, on_event)

    def _relieve(self, monitor: Monitor, number: int) -> None:
        """Read the pressure once; recover from a loss that is noticed meanwhile."""
        tokens = int(sum(m.lengths.sum() for m in self._running))
        try:
            for made in monitor.observe(self.chain, tokens, number):
                self._switches.append(made)
        except DeviceLost as lost:
            self._recover(lost)

    def _recover(self, lost: DeviceLost) -> None:
        """Recover from a loss, with the keys and values of all running requests."""
        self._recoveries.append(recover(self.chain, lost, self._running))

    def settle(self) -> float:
        """Recover from losses between calls: copy weights to their places, compile programs.

        Returns:
          The seconds that compiling took.
        """
        while True:
            try:
                for device in (*self.layout.devices, *self.spares):
                    self.chain.memories[device].check()
                bring(self.chain)
                return compile_chain(self.chain)
            except DeviceLost as lost:
                self._recover(lost)

    def _memory(self, device: int) -> DeviceMemory:
        if not 0 <= device < len(self.chain.memories):
            raise ValueError(
                f"no device {device}; the deployment has 0 to {len(self.chain.memories) - 1}."
            )
        return self.chain.memories[device]
