"""The closed forms of the bytes that a strategy's programs send, assembled from `bounds`.

They follow the model as the one `shard_map` runs it: tables, attention, the two contractions of a
block, handoffs, the model's end. The compiled ledger must equal them, by kind and mesh axes. A
training step's are in `train_communication`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parallax.bounds import Transfer
from parallax.models.config import ModelConfig
from parallax.parallel.experts import TILES_SCOPE, Platform
from parallax.parallel.experts.few_rows import PICKED_PASSES, Form
from parallax.programs.decoding import Decoder
from parallax.programs.first_layers import add_first_layers
from parallax.programs.pass_shape import PassShape
from parallax.strategy import Strategy
from parallax.workload import Workload


def forward_transfers(
    config: ModelConfig, strategy: Strategy, workload: Workload, *, platform: Platform = "gpu"
) -> tuple[Transfer, ...]:
    """Return the transfers of one forward pass to last-position logits.

    Args:
      config: the model at its full size.
      strategy: a strategy whose parts have closed forms.
      workload: the workload in this strategy's microbatches.
      platform: the program's platform; "cpu" emulates ragged exchanges by dense ones.

    Returns:
      One Transfer per purpose, with the bytes leaving a device over the whole pass.
      `minimum_bytes` leaves out what pipeline bubbles and padded layers repeat.
    """
    shape = PassShape(config, strategy, workload, platform)
    shape.step_weights()
    shape.stack()
    add_first_layers(shape)
    last = shape.b * config.d_model * shape.item
    seq = shape.over("act_seq", "act_norm_seq")
    shape.add("last_position", "last position", "all-reduce", seq, last)
    shape.end(last)
    shape.end_weights(shape.item, every_position=False)
    return tuple(shape.transfers)


def decode_transfers(decoder: Decoder, *, platform: Platform = "gpu") -> tuple[Transfer, ...]:
    """Return the transfers of one decoding step: a new token of every sequence.

    Returns:
      One Transfer per purpose, with the bytes leaving a device over the step. `minimum_bytes`
      leaves out what pipeline bubbles and padded layers repeat.
    """
    sharded = decoder.sharded
    shape = PassShape(sharded.config, sharded.strategy, sharded.workload, platform, decoder)
    shape.step_weights()
    shape.stack()
    add_first_layers(shape)
    shape.end(shape.b * sharded.config.d_model * shape.item)
    shape.end_weights(shape.item, every_position=False)
    return tuple(shape.transfers)


_RUNS: Mapping[Form, str] = {
    "tiles": "FLOPs of experts and bytes of ragged exchanges follow. Experts run in tiles of rows",
    "every": "one product per matrix reads all experts on a device once, and multiplies each by "
    "all rows",
    "chosen": "one product per matrix multiplies only the experts that tokens choose, whose "
    f"weights are picked (moved {PICKED_PASSES} times), by all rows",
}


@dataclass(frozen=True)
class ExpectedRouting:
    """The data-dependent figures of a program with experts under uniform routing (tag: derived).

    Attributes:
      trips: named scope of a loop over tiles -> its trip count.
      sent: mesh axes of a ragged exchange -> share of its buffer that leaves a device.
      utilisation: share of the rows that experts multiply that are their tokens.
      exchange: the exchange by which tokens reach their experts in this program; "" if none.
      form: how experts run.
    """

    trips: dict[str, float]
    sent: dict[tuple[str, ...], float]
    utilisation: float
    exchange: str
    form: Form

    @property
    def note(self) -> str:
        """The note for a report, in one line."""
        said = (
            f"every expert is chosen as often (derived): {_RUNS[self.form]}, of which "
            f"{100 * self.utilisation:.3g} % are its tokens"
        )
        if self.exchange:
            said += f"; rows travel by a {self.exchange} exchange"
        return said + (" (verify emulates it by a dense one)" if self.exchange == "ragged" else "")

    def ragged_bytes(self, collective: Any) -> float | None:
        """Return the bytes that leave a device in one ragged exchange of a ledger."""
        share = self.sent.get(collective.axes or ())
        return None if share is None else share * collective.payload_bytes


def expected_routing(
    config: ModelConfig, strategy: Strategy, workload: Workload, decoder: Decoder | None = None
) -> ExpectedRouting | None:
    """Return a program's data-dependent figures under uniform routing; None without experts.

    With a `decoder` the program is its step, otherwise a forward pass or training step.
    """
    if not config.num_experts:
        return None
    shape = PassShape(config, strategy, workload, "gpu", decoder)
    part: Any = strategy.experts
    sizes = strategy.mesh_axes
    experts = shape.expert_shape
    form: Form = part.form(experts, sizes, config.num_experts // shape.split.count("expert"))
    tiles = part.tiles(experts, sizes)
    trips: dict[str, float] = {TILES_SCOPE: tiles} if form == "tiles" else {}
    sent: dict[tuple[str, ...], float] = {}
    if getattr(part, "exchange", "") == "ragged":
        dense = dataclasses.replace(part, exchange="dense")
        buffers = {(t.role, t.axes): t for t in dense.transfers(shape.expert_shape, sizes, 1)}
        for t in part.transfers(shape.expert_shape, sizes, 1):
            if t.kind == "ragged-all-to-all":
                devices = math.prod(sizes[a] for a in t.axes)
                buffer = buffers[t.role, t.axes].wire_bytes * devices / (devices - 1)
                sent[t.axes] = t.wire_bytes / buffer
    _, each = part.chunked(experts, sizes)
    senders = math.prod(sizes[a] for a in part.exchange_axes)
    rows = each * experts.top_k * senders / experts.num_experts
    multiplied = tiles * part.tile if form == "tiles" else each * senders
    used = 1 / each if form == "chosen" else rows / multiplied
    exchange = part.compiled_exchange("gpu") if part.exchange_axes else ""
    return ExpectedRouting(trips, sent, used, exchange, form)


def kv_cache_bytes(config: ModelConfig, workload: Workload, devices: int, copies: int = 1) -> float:
    """Return the bytes per device of the run's whole KV cache, spread evenly.

    `copies` is the number of devices that keep the same key/value head.
    """
    row = config.cached_width * config.num_layers * config.item_bytes
    return copies * workload.tokens * row / devices


def full_attention_flops(config: ModelConfig, workload: Workload, devices: int) -> float:
    """Return the FLOPs per device of all layers' attention without a mask, spread evenly."""
    heads = config.num_heads * (config.head_dim + config.value_dim) * config.num_layers
    return 2.0 * workload.batch * workload.seq_len**2 * heads / devices
