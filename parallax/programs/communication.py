"""The closed forms of the bytes that a strategy's programs send, assembled from `bounds`.

They follow the model as the one `shard_map` runs it: tables, attention, the two contractions of a
block, handoffs, the model's end; and in a training step the backward pass: what it recomputes, its
own collectives, and the sums of gradients. The compiled ledger must equal them, by kind and mesh
axes.
Shapes: b sequences of a microbatch on one device, L tokens, D model width.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from parallax.bounds import Role, Transfer, transfer
from parallax.models.block import attention_shape
from parallax.models.config import ITEM_BYTES, ModelConfig
from parallax.parallel.cached_attention import cached_transfers
from parallax.parallel.experts import TILES_SCOPE, ExpertShape, Platform
from parallax.parallel.experts.chunks import chunk_tokens
from parallax.parallel.remat import Remat
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
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
    shape.stack(passes=1)
    last = shape.b * config.d_model * shape.item
    seq = shape.over("act_seq", "act_norm_seq")
    shape.add("last_position", "last position", "all-reduce", seq, last)
    shape.end(last, passes=1)
    return tuple(shape.transfers)


def train_transfers(
    config: ModelConfig,
    strategy: Strategy,
    workload: Workload,
    remat: Remat = "layer",
    param_bytes: int = 4,
    *,
    platform: Platform = "gpu",
) -> tuple[Transfer, ...]:
    """Return the transfers of one training step: forward, recomputed, backward, gradient sums.

    Args:
      config, strategy, workload, platform: as in `forward_transfers`.
      remat: what the backward pass recomputes.
      param_bytes: bytes per parameter, and per gradient, as the optimizer keeps them.

    Returns:
      One Transfer per purpose. `minimum_bytes` counts one forward pass and one backward pass
      without bubbles: what rematerialisation sends again does not count.
    """
    shape = PassShape(config, strategy, workload, platform)
    passes = 1 if remat == "none" else 2
    shape.stack(passes, again=remat == "layer" and shape.layers > 1)
    shape.stack_backward()
    whole = shape.residual * shape.item
    shape.add("unembedding_gather", "gather after the last layer", "all-gather",
             shape.over("act_norm_seq"), whole, passes)  # fmt: skip
    shape.end(whole, passes)
    shape.end_backward(whole)
    shape.cross_entropy(passes)
    shape.routers()
    shape.gradients(param_bytes)
    return tuple(shape.transfers)


def decode_transfers(decoder: Decoder, *, platform: Platform = "gpu") -> tuple[Transfer, ...]:
    """Return the transfers of one decoding step: a new token of every sequence.

    Returns:
      One Transfer per purpose, with the bytes leaving a device over the step. `minimum_bytes`
      leaves out what pipeline bubbles and padded layers repeat.
    """
    sharded = decoder.sharded
    shape = PassShape(sharded.config, sharded.strategy, sharded.workload, platform, decoder)
    shape.stack(passes=1)
    shape.end(shape.b * sharded.config.d_model * shape.item, passes=1)
    return tuple(shape.transfers)


@dataclass(frozen=True)
class ExpectedRouting:
    """The data-dependent figures of a program with experts under uniform routing (tag: derived).

    Attributes:
      trips: named scope of a loop over tiles -> its trip count.
      sent: mesh axes of a ragged exchange -> share of its buffer that leaves a device.
      utilisation: share of the rows in experts' tiles that are tokens.
      exchange: the exchange by which tokens reach their experts in this program; "" if none.
    """

    trips: dict[str, float]
    sent: dict[tuple[str, ...], float]
    utilisation: float
    exchange: str

    @property
    def note(self) -> str:
        """The note for a report, in one line."""
        said = (
            "every expert is chosen as often (derived): FLOPs of experts and bytes of ragged "
            f"exchanges follow, and {100 * self.utilisation:.3g} % of the rows in tiles are tokens"
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
    trips: dict[str, float] = {TILES_SCOPE: part.tiles(shape.expert_shape, sizes)}
    sent: dict[tuple[str, ...], float] = {}
    if getattr(part, "exchange", "") == "ragged":
        dense = dataclasses.replace(part, exchange="dense")
        buffers = {(t.role, t.axes): t for t in dense.transfers(shape.expert_shape, sizes, 1)}
        for t in part.transfers(shape.expert_shape, sizes, 1):
            if t.kind == "ragged-all-to-all":
                devices = math.prod(sizes[a] for a in t.axes)
                buffer = buffers[t.role, t.axes].wire_bytes * devices / (devices - 1)
                sent[t.axes] = t.wire_bytes / buffer
    experts = shape.expert_shape
    _, each = chunk_tokens(experts.tokens, part.chunks)
    senders = math.prod(sizes[a] for a in part.exchange_axes)
    rows = each * experts.top_k * senders / experts.num_experts
    exchange = part.compiled_exchange("gpu") if part.exchange_axes else ""
    return ExpectedRouting(trips, sent, rows / (trips[TILES_SCOPE] * part.tile), exchange)


class _SummedPart(NamedTuple):
    """One part of a layer whose outputs are partial sums, and how devices sum them.

    Attributes:
      what: the part's name.
      axes: mesh axes that its output is summed over.
      sums: how many times per layer and tick.
      gather, sum, gradient: roles of its transfers.
    """

    what: str
    axes: tuple[str, ...]
    sums: int
    gather: Role
    sum: Role
    gradient: Role


@dataclass
class PassShape:
    """The sizes of one program, and the transfers counted so far."""

    config: ModelConfig
    strategy: Strategy
    workload: Workload
    platform: Platform
    decoder: Decoder | None = None  # whose step it is; None is a pass over whole sequences
    transfers: list[Transfer] = field(default_factory=list)

    def __post_init__(self):
        step = self.decoder
        self.split = self.strategy.split() if step is None else step.split
        self.seq_len = self.workload.seq_len if step is None else 1
        stages = self.split.count("layers")
        microbatches = self.workload.microbatches if step is None else step.step_microbatches
        layers = self.strategy.layers
        self.useful = layers.microbatch_groups(microbatches, stages)
        self.ticks = layers.ticks(microbatches, stages)
        groups = self.strategy.layer_groups(self.config.num_layers)
        self.layers = max(groups)
        self.b = self.workload.batch // self.split.count("act_batch") // self.useful
        self.item = self.config.item_bytes
        self.wide = 8 if self.config.dtype == "float64" else 4  # of softmaxes and losses
        tokens = self.b * self.seq_len // self.split.count("act_seq")
        self.tokens, self.residual = tokens, tokens * self.config.d_model
        wire = self.split.reduce_dtype
        self.wire_item = self.item if wire is None else ITEM_BYTES[wire]

    @property
    def expert_shape(self) -> ExpertShape:
        return ExpertShape(
            tokens=self.tokens,
            width=self.config.d_model,
            top_k=self.config.experts_per_token,
            num_experts=self.config.num_experts,
            item_bytes=self.item,
            gate_bytes=self.wide,
        )

    def over(self, *names: str) -> tuple[str, ...]:
        return self.split.over(*names)

    def add(
        self, role: Role, what: str, kind: str, axes: tuple[str, ...], payload_bytes: float,
        passes: int = 1, *, per_layer: bool = False,
    ) -> None:  # fmt: skip
        """Add one collective per tick (and layer), run in `passes` passes."""
        if not axes or not passes:
            return
        times = self.layers if per_layer else 1
        size = math.prod(self.split.mesh_axes[axis] for axis in axes)
        self.transfers.append(
            transfer(role, what, kind, axes, size, payload_bytes, passes * self.ticks * times,
                     self.useful * times)
        )  # fmt: skip

    def stack(self, passes: int, again: bool = False) -> None:
        """Add embedding, layers and handoffs in `passes` passes.

        With `again`, each layer is also recomputed on its own, as far as its gradient needs.
        """
        whole, item = self.residual * self.item, self.wire_item
        self.add("lookup", "widen embeddings and handoffs", "all-gather", self.over("lookup"),
                 whole, passes)  # fmt: skip
        self._parts("transfers", passes)
        if again:
            self._parts("recompute_transfers", 1)
        norm_seq = self.over("act_norm_seq")
        for part in self._parts_summed(passes, again):
            kind = "all-reduce"
            if norm_seq and norm_seq == part.axes:
                kind = "reduce-scatter"
                self.add(part.gather, f"gather into {part.what}", "all-gather", part.axes, whole,
                         passes + again, per_layer=True)  # fmt: skip
            self.add(part.sum, f"sum of {part.what}", kind, part.axes, self.residual * item,
                     part.sums, per_layer=True)  # fmt: skip
        handoff = whole // self.split.count("lookup") // self.split.count("act_norm_seq")
        stage = self.over("layers")
        self.add("stage_handoff", "stage handoff", "collective-permute", stage, handoff)

    def stack_backward(self) -> None:
        """Add the backward pass through the layers and handoffs."""
        whole, norm_seq = self.residual * self.item, self.over("act_norm_seq")
        self._parts("backward_transfers", 1)
        for part in self._parts_summed(1, False):
            kind = "all-reduce"
            if norm_seq and norm_seq == part.axes:
                kind = "reduce-scatter"
                self.add(part.gradient, f"gradient of {part.what}'s sum", "all-gather", part.axes,
                         self.residual * self.wire_item, per_layer=True)  # fmt: skip
            self.add(part.gradient, f"gradient into {part.what}", kind, part.axes, whole,
                     per_layer=True)  # fmt: skip
        stage = self.over("layers")
        handoff = whole // self.split.count("lookup") // self.split.count("act_norm_seq")
        role: Role = "stage_handoff_gradient"
        self.add(role, "gradient of stage handoff", "collective-permute", stage, handoff)
        if stage:
            self.add(role, "widen the handoff's gradient", "all-gather", self.over("lookup"), whole)

    def _parts_summed(self, passes: int, again: bool) -> "tuple[_SummedPart, _SummedPart]":
        """Return a layer's attention and MLP.

        A layer that is recomputed on its own stops before its last sum, whose result is not needed.
        """
        return (
            _SummedPart("attention", self.over("heads", "head_dim"), passes + again,
                        "attention_gather", "attention_sum", "attention_gradient"),
            _SummedPart("MLP", self.over(*self.split.expert_sums), passes,
                        "mlp_gather", "mlp_sum", "mlp_gradient"),
        )  # fmt: skip

    def _parts(self, closed_form: str, passes: int) -> None:
        """Add the attention and expert parts' transfers in `passes` passes through all layers."""
        calls = passes * self.ticks * self.layers
        config, split = self.config, self.split
        attention = attention_shape(
            config, split, self.b, self.workload.seq_len, packed=self.workload.packed
        )
        if config.qk_norm:
            heads = attention.heads + config.num_kv_heads // split.count("kv_heads")
            self.add("qk_norm_sum", "sums of squares of queries and keys", "all-reduce",
                     self.over("head_dim"), self.tokens * heads * self.wide, passes,
                     per_layer=True)  # fmt: skip
        if self.decoder is None:
            moved = getattr(split.attention, closed_form)(attention, split.mesh_axes, calls)
        else:
            shape = self.decoder.attention_shape
            moved = cached_transfers(self.decoder.layout, shape, split.mesh_axes, calls)
        if config.num_experts:
            moved += getattr(split.experts, closed_form)(
                self.expert_shape, split.mesh_axes, calls, self.platform
            )
        once = 0 if closed_form == "recompute_transfers" else self.useful / (passes * self.ticks)
        for t in moved:
            self.transfers.append(dataclasses.replace(t, minimum_bytes=t.minimum_bytes * once))

    def end(self, payload_bytes: float, passes: int) -> None:
        """Add the sum that gives every stage the last stage's result, a share of the width each."""
        stage, shares = self.over("layers"), self.split.count("lookup")
        self.add("last_stage", "last stage's result", "all-reduce", stage, payload_bytes / shares,
                 passes)  # fmt: skip
        if stage:
            self.add("last_stage", "widen the last stage's result", "all-gather",
                     self.over("lookup"), payload_bytes, passes)  # fmt: skip

    def end_backward(self, whole: float) -> None:
        """Add the gradient from the logits to the last layer."""
        role: Role = "unembedding_gradient"
        norm_seq, lookup = self.over("act_norm_seq"), self.over("lookup")
        self.add(role, "gradient of the last gather", "reduce-scatter", norm_seq, whole)
        if self.over("layers"):
            self.add(role, "widen the last layer's gradient", "all-gather", lookup, whole)
        axes = tuple(a for a in self.over("vocab") if a not in norm_seq)
        self.add(role, "gradient into the head", "all-reduce", axes, whole)

    def cross_entropy(self, passes: int) -> None:
        """Add the sums of the loss."""
        vocab, row = self.over("vocab"), self.tokens * self.wide
        self.add("loss", "maximum and sum of the softmax", "all-reduce", vocab, 2 * row, passes)
        self.add("loss", "label's logit", "all-reduce", vocab, row)
        self._once("loss", "mean loss", self.over("act_batch", "act_seq"), 2 * self.wide)

    def routers(self) -> None:
        """Add the sums of all routers' statistics for the load-balancing loss, once per step."""
        config, tokens = self.config, self.over("act_batch", "act_seq")
        if not config.num_experts:
            return
        alike = tuple(a for a in self.over("mlp", "expert") if a not in tokens)
        # Of the five statistics, the loss needs the tokens and probabilities of each expert.
        self._once("balance_loss", "routers' statistics", (*tokens, *alike),
                   self.layers * config.num_experts * (4 + self.wide))  # fmt: skip
        self._once("balance_loss", "load-balancing loss", self.over("layers"), self.wide)

    def _once(self, role: Role, what: str, axes: tuple[str, ...], payload_bytes: float) -> None:
        if axes:
            axes = tuple(a for a in self.split.mesh_axes if a in axes)
            size = math.prod(self.split.mesh_axes[a] for a in axes)
            self.transfers.append(transfer(role, what, "all-reduce", axes, size, payload_bytes, 1))

    def gradients(self, param_bytes: int) -> None:
        """Add one sum per gradient over the devices that used the parameter for different work."""
        sharded = ShardedTransformer(self.config, self.strategy, self.workload)
        for axes, size in sharded.gradient_sums().items():
            what = f"gradients over {', '.join(axes)}"
            self._once("gradient_sum", what, axes, size * param_bytes)


def kv_cache_bytes(config: ModelConfig, workload: Workload, devices: int) -> float:
    """Return the bytes per device of the run's whole KV cache, spread evenly."""
    row = 2 * config.num_kv_heads * config.head_dim * config.num_layers * config.item_bytes
    return workload.tokens * row / devices


def full_attention_flops(config: ModelConfig, workload: Workload, devices: int) -> float:
    """Return the FLOPs per device of all layers' attention without a mask, spread evenly."""
    heads = config.num_heads * config.head_dim * config.num_layers
    return 4.0 * workload.batch * workload.seq_len**2 * heads / devices
