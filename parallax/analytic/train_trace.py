"""The ingredients of a training step's synthetic trace: what is sent in which of its passes."""

import functools
from typing import Literal

from parallax.analytic.layer_backward import SentBack
from parallax.analytic.packed_weights import PackedWeights
from parallax.analytic.places import PLACES, Placed, placed
from parallax.analytic.sends import one_send
from parallax.analytic.trace import Trace
from parallax.bounds import Role, Transfer
from parallax.hlo.execution_trace import Loop, Send, Start, Step, Wait
from parallax.programs.communication import forward_transfers
from parallax.programs.steps import Training

# How often a transfer of a training step is sent: per layer, per microbatch, or once.
Pace = Literal["layer", "microbatch", "step"]
_PER_MICROBATCH: frozenset[Role] = frozenset({
    "lookup", "table_rows", "stage_handoff", "stage_handoff_gradient", "last_stage",
    "end_weight_gather", "end_weight_gradient", "unembedding_gather", "unembedding_gradient",
    "loss",
})  # fmt: skip
_PER_STEP: frozenset[Role] = frozenset(
    {"step_gather", "gradient_sum", "balance_loss", "parameter_gather"}
)
# Beside the products of a layer: XLA starts them an iteration of the scan ahead.
_OVERLAPPED: frozenset[Role] = frozenset({"weight_gather", "weight_gradient"})

_RING: tuple[Role, ...] = ("ring_hop", "ring_gradient")
_GRADIENTS: tuple[Role, ...] = ("attention_gradient", "mlp_gradient")


def pace_of(role: Role) -> Pace:
    """Return how often transfers of a role are sent in a training step."""
    if role in _PER_STEP:
        return "step"
    return "microbatch" if role in _PER_MICROBATCH else "layer"


class TrainTrace(Trace):
    """A training step as one device sees it.

    Attributes:
      step: the step. The others are those of a `Trace`, of one microbatch's forward pass.
    """

    step: Training

    def __init__(self, step: Training, skew: float, weights: PackedWeights, device_kind: str):
        super().__init__(step, skew, weights, device_kind)
        self.split = self.split.replace(axes={**self.split.axes, "embed": ()})

    @functools.cached_property
    def transfers(self) -> tuple[Placed, ...]:
        """The transfers of layers in the forward pass, each at its place."""
        ticks, layers = self.walk.ticks, self.walk.layers
        forward = forward_transfers(self.config, self.strategy, self.workload)
        return tuple(
            placed(t, one_send(t, self.strategy.mesh), ticks, layers)
            for t in forward
            if t.count and t.wire_bytes and pace_of(t.role) == "layer"
            and t.role in PLACES and t.role not in {"last_position", *_OVERLAPPED}
        )  # fmt: skip

    @functools.cached_property
    def _others(self) -> tuple[tuple[Transfer, Send, float], ...]:
        """The transfers beside those of the forward pass, with their executions at their pace."""
        ticks, layers = self.walk.ticks, self.walk.layers
        each = {"layer": ticks * layers, "microbatch": ticks, "step": 1}
        forward = {_key(x.transfer): float(x.times) for x in self.transfers}
        found = []
        for t in self.step.of_shard_map():
            if t.count and t.wire_bytes:
                times = t.count / each[pace_of(t.role)]
                sent = min(times, forward.get(_key(t), 0))
                forward[_key(t)] = forward.get(_key(t), 0) - sent
                found.append((t, one_send(t, self.strategy.mesh), times - sent))
        return tuple(found)

    def beside(self, *, backward: bool) -> tuple[list[Step], list[Step]]:
        """Return the starts of what a layer sends beside its products, and the waits for them."""
        sends = [
            (send, count) for t, send, count in self._others
            if t.role == "weight_gather" or (backward and t.role == "weight_gradient")
        ]  # fmt: skip
        starts = [
            Start(f"{send.name} {n}.{i}", send)
            for n, (send, count) in enumerate(sends)
            for i in range(1 if not backward else max(1, round(count) - 1))
        ]
        return [*starts], [Wait(start.name) for start in starts]

    def sent_back(self) -> SentBack:
        """Return what the backward pass of a layer sends beside its products."""
        ring = [(send, round(count)) for t, send, count in self._others
                if t.role in _RING and count > 0]  # fmt: skip
        hops = max((count for _, count in ring), default=0)
        sums = {
            role: [send for t, send, count in self._others if t.role == role
                   for _ in range(round(count))]
            for role in _GRADIENTS
        }  # fmt: skip
        return SentBack(
            [[send for send, count in ring if hop < count] for hop in range(hops)],
            sums["attention_gradient"], sums["mlp_gradient"],
        )  # fmt: skip

    def repeated(self, pace: Pace) -> list[Step]:
        """Trace the sends at a pace, as often as the closed form counts them, nothing beside."""
        beside = {*_RING, *_GRADIENTS, *_OVERLAPPED}
        return [Loop(_named(t), count, _named(t), "nothing") for t, _, count in self._others
                if pace_of(t.role) == pace and t.role not in beside and count > 0]  # fmt: skip

    def bodies(self) -> dict[str, tuple[Step, ...]]:
        """Return the bodies of the loops that `repeated` returns."""
        sent: dict[str, tuple[Step, ...]] = {_named(t): (send,) for t, send, _ in self._others}
        return sent | {"nothing": ()}


def _named(t: Transfer) -> str:
    return f"{t.role}: {t.what}, {t.kind} over {', '.join(t.axes)}, {t.wire_bytes / t.count:.0f} B"


def _key(t: Transfer) -> tuple[str, str, str, tuple[str, ...]]:
    return t.role, t.what, t.kind, t.axes
