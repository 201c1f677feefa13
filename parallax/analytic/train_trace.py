"""The ingredients of a training step's synthetic trace: what is sent in which of its passes."""

import functools
from collections.abc import Sequence
from typing import Literal

from parallax.analytic.packed_weights import PackedWeights
from parallax.analytic.places import PLACES, Placed, placed
from parallax.analytic.sends import one_send
from parallax.analytic.trace import Trace
from parallax.bounds import Role, Transfer
from parallax.hlo.execution_trace import Loop, Send
from parallax.programs.communication import forward_transfers
from parallax.programs.steps import Training

# How often a transfer of a training step is sent: per layer, per microbatch, or once.
Pace = Literal["layer", "microbatch", "step"]
_PER_MICROBATCH: frozenset[Role] = frozenset({
    "lookup", "stage_handoff", "stage_handoff_gradient", "last_stage", "unembedding_gather",
    "unembedding_gradient", "loss",
})  # fmt: skip
_PER_STEP: frozenset[Role] = frozenset({"gradient_sum", "balance_loss"})
_ONLY_FORWARD: frozenset[Role] = frozenset({"last_position", "last_stage"})


def pace_of(role: Role) -> Pace:
    """Return how often transfers of a role are sent in a training step."""
    if role in _PER_STEP:
        return "step"
    return "microbatch" if role in _PER_MICROBATCH else "layer"


class TrainTrace(Trace):
    """A training step as one device sees it.

    Attributes:
      step: the step. The others are those of a `Trace`.
    """

    step: Training

    def __init__(self, step: Training, skew: float, weights: PackedWeights, device_kind: str):
        super().__init__(step, skew, weights, device_kind)
        self.split = self.split.replace(axes={**self.split.axes, "embed": ()})

    @functools.cached_property
    def transfers(self) -> tuple[Placed, ...]:
        """The transfers of layers in the forward pass, each at its place."""
        ticks, layers = self.walk.ticks, self.walk.layers
        return tuple(
            placed(t, one_send(t, self.strategy.mesh), ticks, layers)
            for t in forward_transfers(self.config, self.strategy, self.workload)
            if t.count and t.wire_bytes and pace_of(t.role) == "layer"
            and t.role not in _ONLY_FORWARD and t.role in PLACES
        )  # fmt: skip

    @functools.cached_property
    def _others(self) -> tuple[tuple[Transfer, Send, float], ...]:
        """The transfers beside those of the forward pass, with their executions in the step."""
        microbatches, layers = self.walk.useful, self.walk.layers
        forward = {_key(x.transfer): x.times * microbatches * layers for x in self.transfers}
        return tuple(
            (t, one_send(t, self.strategy.mesh), t.count - forward.get(_key(t), 0))
            for t in self.step.of_shard_map() if t.count and t.wire_bytes
        )  # fmt: skip

    def others(self, pace: Pace, roles: Sequence[Role] = ()) -> list[tuple[Send, float]]:
        """Return the sends at a pace, of some roles or all, with their executions at that pace."""
        each = {"layer": self.walk.useful * self.walk.layers, "microbatch": self.walk.useful,
                "step": 1}[pace]  # fmt: skip
        return [(send, count / each) for t, send, count in self._others
                if pace_of(t.role) == pace and count > 0
                and (not roles or t.role in roles)]  # fmt: skip

    def ring_back(self) -> list[Send]:
        """Return the sends of keys, values and their gradients in the backward pass, hop by hop."""
        return [send for send, count in self.others("layer", ("ring_gradient",))
                for _ in range(round(count))]  # fmt: skip

    def repeated(self, pace: Pace) -> list[Loop]:
        """Trace the sends at a pace, as often as the closed form counts them, nothing beside."""
        overlapped = {send.name for send in self.ring_back()} if pace == "layer" else set()
        return [Loop(send.name, count, f"send {send.name}", "nothing")
                for send, count in self.others(pace) if send.name not in overlapped]  # fmt: skip

    def bodies(self) -> dict[str, tuple[Send, ...]]:
        """Return the bodies of the loops that `repeated` returns."""
        return {f"send {send.name}": (send,) for _, send, _ in self._others} | {"nothing": ()}


def _key(t: Transfer) -> tuple[str, str, tuple[str, ...]]:
    return t.role, t.what, t.axes
