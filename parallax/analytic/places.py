"""The places in a synthetic trace where transfers are sent, and a check that none is lost."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from parallax.bounds import Role, Transfer
from parallax.hlo.execution_trace import Loop, Send, Start, Step

Place = Literal[
    "start", "tick", "handoff",
    "before_attention", "attention_inputs", "scores", "ring", "attention_outputs",
    "after_attention", "before_mlp", "experts", "after_mlp",
]  # fmt: skip
PLACES: Mapping[Role, Place] = {
    "step_gather": "start",
    "lookup": "tick",
    "table_rows": "tick",
    "end_weight_gather": "tick",
    "weight_gather": "before_attention",
    "stage_handoff": "handoff",
    "last_stage": "tick",
    "last_position": "tick",
    "attention_gather": "before_attention",
    "queries": "attention_inputs",
    "keys_values": "attention_inputs",
    "segment_ids": "attention_inputs",
    "new_tokens": "attention_inputs",
    "new_slices": "attention_outputs",  # really before attention; as synchronous, it takes as long
    "scores": "scores",
    "ring_hop": "ring",
    "outputs": "attention_outputs",
    "softmax_merge": "attention_outputs",
    "qk_norm_sum": "after_attention",
    "attention_sum": "after_attention",
    "mlp_gather": "before_mlp",
    "expert_choices": "experts",
    "expert_gates": "experts",
    "expert_rows": "experts",
    "node_rows": "experts",
    "mlp_sum": "after_mlp",
}
_PER_TICK: tuple[Place, ...] = ("tick", "handoff")  # the others are in every layer


@dataclass(frozen=True)
class Placed:
    """A transfer of the analytical model and its place in the trace.

    Attributes:
      transfer: the transfer, with all its executions in the program.
      place: its place; None where its role has none.
      send: one execution; the trace repeats this very object.
      times: executions per tick, or per tick and layer, depending on the place.
    """

    transfer: Transfer
    place: Place | None
    send: Send
    times: int


def placed(transfer: Transfer, send: Send, ticks: int, layers: int) -> Placed:
    """Put a transfer at its place in a trace of `ticks` ticks of `layers` layers."""
    place = PLACES.get(transfer.role)
    each = 1 if place == "start" else ticks if place in _PER_TICK else ticks * layers
    return Placed(transfer, place, send, transfer.count // each)


def check_sent_once(steps: Mapping[str, tuple[Step, ...]], expected: Iterable[Placed]) -> None:
    """Check that a trace executes every transfer as often as its closed form counts it.

    Args:
      steps: computation -> its steps, starting with "entry".
      expected: all transfers; the trace holds the `send` of each.

    Raises:
      AssertionError: a transfer is lost or sent more than once; names its role.
    """
    sent: Counter[int] = Counter()

    def visit(name: str, times: float) -> None:
        for step in steps[name]:
            what = step.what if isinstance(step, Start) else step
            if isinstance(what, Send):
                sent[id(what)] += int(times)
            elif isinstance(what, Loop):
                visit(what.body, times * what.count)

    visit("entry", 1.0)
    wrong = [
        f"{x.transfer.role} ('{x.transfer.what}' over {', '.join(x.transfer.axes)}), "
        f"{sent[id(x.send)]} times instead of {x.transfer.count}"
        for x in expected if sent[id(x.send)] != x.transfer.count
    ]  # fmt: skip
    if wrong:
        raise AssertionError(
            f"estimate: the synthetic trace sends {'; '.join(wrong)}. Give each role one place in "
            "parallax.analytic.places, which one part of the layer sends."
        )
