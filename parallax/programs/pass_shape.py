"""The sizes of one program, and the transfers of its passes through the model.

Shapes: b sequences of a microbatch on one device, L tokens, D model width.
"""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flax import nnx

from parallax.bounds import Role, Transfer, transfer
from parallax.models.block import attention_shape
from parallax.models.config import ITEM_BYTES, ModelConfig
from parallax.models.layer_kinds import LayerKind
from parallax.parallel.attention_part import AttentionShape
from parallax.parallel.cached_attention import cached_transfers
from parallax.parallel.experts import ExpertShape, Platform
from parallax.parallel.remat import Remat
from parallax.parallel.sharded_weights import gather_steps
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
from parallax.rules import AxisTable, embed_axes, names_of
from parallax.strategy import Strategy
from parallax.workload import Workload


class SummedPart(NamedTuple):
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


GATHER = "gather sharded weights"


class Runs(NamedTuple):
    """How often a device runs the parts of a training step.

    Attributes:
      forward: its layers forward.
      backward: its layers backward, and what that recomputes.
      weights: the gradients of its layers' weights, in some of these or all.
      ends: the embedding and the head.
      sends, sends_back: handoffs.
    """

    forward: int
    backward: int
    weights: int
    ends: int
    sends: int
    sends_back: int


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
        config, step = self.config, self.decoder
        self.strategy = self.strategy.for_heads(config.num_heads, config.num_kv_heads)
        self.split = self.strategy.split() if step is None else step.split
        self.seq_len = self.workload.seq_len if step is None else 1
        if self.strategy.gather == "step":
            self.split = self.split.replace(axes={**self.split.axes, "embed": ()})
        self.sharded = ShardedTransformer(self.config, self.strategy, self.workload).untied
        stages = self.split.count("layers")
        microbatches = self.workload.microbatches if step is None else step.step_microbatches
        layers = self.strategy.layers
        self.useful = layers.microbatch_groups(microbatches, stages)
        self.ticks = layers.ticks(microbatches, stages)
        self.run_as(Runs(*(self.ticks,) * len(Runs._fields)))
        groups = self.strategy.layer_groups(self.config.stacked_layers, len(self.config.kinds))
        self.chunks = layers.virtual_stages
        self.layers = max(groups) // self.chunks  # that run at once
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
            decodes=self.decoder is not None,
        )

    def run_as(self, runs: Runs) -> None:
        """Set how often the parts of a pass run."""
        self.runs, self.ticks = runs, runs.forward

    @contextlib.contextmanager
    def running(self, times: int) -> Iterator[None]:
        """Add what runs so many times."""
        before, self.ticks = self.ticks, times
        yield
        self.ticks = before

    def over(self, *names: str) -> tuple[str, ...]:
        return self.split.over(*names)

    def add(
        self, role: Role, what: str, kind: str, axes: tuple[str, ...], payload_bytes: float,
        passes: int = 1, *, per_layer: bool = False,
    ) -> None:  # fmt: skip
        """Add one collective per tick (and layer); passes after the first recompute."""
        if not axes or not passes:
            return
        times, chunks = (self.layers, self.chunks) if per_layer else (1, 1)
        axes = tuple(axis for axis in self.split.mesh_axes if axis in axes)
        size = self.devices(axes)
        runs = self.ticks + (passes - 1) * self.runs.backward
        self.transfers.append(
            transfer(role, what, kind, axes, size, payload_bytes, runs * times,
                     self.useful * times * chunks)
        )  # fmt: skip

    def stack(self, remat: Remat | None = None) -> None:
        """Add embedding, layers and handoffs of one forward pass.

        With `remat`, also what the backward pass of each layer sends again to recompute it.
        """
        whole = self.residual * self.item
        with self.running(self.runs.ends):
            self.rows_of_tables()
        self.add("lookup", "widen embeddings and handoffs", "all-gather", self.over("lookup"),
                 whole)  # fmt: skip
        self.of_layers(remat)
        handoff = whole // self.split.count("lookup") // self.split.count("act_norm_seq")
        stage = self.over("layers")
        with self.running(self.runs.sends):
            self.add("stage_handoff", "stage handoff", "collective-permute", stage, handoff)

    def of_layers(self, remat: Remat | None = None) -> None:
        """Add the layers of one forward pass, as `stack` does."""
        whole, item = self.residual * self.item, self.wire_item
        again = remat in ("attention", "layer")
        self.parts("transfers")
        if again:
            with self.running(self.runs.backward):
                self.parts("recompute_transfers")
        self.weights(remat)
        norm_seq = self.over("act_norm_seq")
        for part in self.parts_summed(remat):
            kind = "all-reduce"
            if norm_seq and norm_seq == part.axes:
                kind = "reduce-scatter"
                self.add(part.gather, f"gather into {part.what}", "all-gather", part.axes, whole,
                         1 + again, per_layer=True)  # fmt: skip
            self.add(part.sum, f"sum of {part.what}", kind, part.axes, self.residual * item,
                     part.sums, per_layer=True)  # fmt: skip

    def parts_summed(self, remat: Remat | None = None) -> "tuple[SummedPart, SummedPart]":
        """Return a layer's attention and MLP.

        A layer that is recomputed stops before its last sum, whose result is not needed but by a
        norm behind it; where the results of matrix products are kept, sums are among them.
        """
        again = remat == "layer"
        last = again and self.config.norms != "before"
        mlp = self.split.expert_sums if self.config.num_experts else ("mlp",)
        return (
            SummedPart("attention", self.over("heads", "head_dim"), 1 + again,
                        "attention_gather", "attention_sum", "attention_gradient"),
            SummedPart("MLP", self.over(*mlp), 1 + last,
                        "mlp_gather", "mlp_sum", "mlp_gradient"),
        )  # fmt: skip

    def parts(self, closed_form: str) -> None:
        """Add the attention and expert parts' transfers in one pass through all layers."""
        config, split = self.config, self.split
        calls = self.ticks * self.layers
        tiles = getattr(self.strategy.layers, "tiles", None)
        # Every weight tile's heads attend to all latents again.
        again = tiles.attention if tiles is not None and config.latent is not None else 1

        def of_tile(shape: AttentionShape) -> AttentionShape:
            return dataclasses.replace(shape, heads=shape.heads // again)

        self.qk_norm_sums()
        if self.decoder is None:
            moved = ()
            for kind, layers in self.kinds().items():
                shape = attention_shape(
                    config, split, self.b, self.workload.seq_len, packed=self.workload.packed,
                    kind=kind,
                )  # fmt: skip
                closed = getattr(split.attention, closed_form)
                moved += closed(of_tile(shape), split.mesh_axes, self.ticks * layers * again)
        else:
            moved = cached_transfers(
                self.decoder.layout, of_tile(self.decoder.attention_shape), split.mesh_axes,
                calls * again,
            )  # fmt: skip
        if config.num_experts:
            moved += getattr(split.experts, closed_form)(
                self.expert_shape, split.mesh_axes, calls, self.platform
            )
        once = 0 if closed_form == "recompute_transfers" else self.useful * self.chunks / self.ticks
        for t in moved:
            self.transfers.append(dataclasses.replace(t, minimum_bytes=t.minimum_bytes * once))

    def kinds(self) -> dict[LayerKind, int]:
        """Return how many of the layers that run at once are of each kind of window."""
        kinds = self.config.kinds
        found: Counter[LayerKind] = Counter()
        for layer in range(self.layers):
            found[LayerKind(kinds[layer % len(kinds)].window)] += 1
        return dict(found)

    def qk_norm_sums(self) -> None:
        """Add the sums of squares of queries and keys that heads split over devices need."""
        config, split = self.config, self.split
        if not config.qk_norm:
            return
        if config.qk_norm_width == "all":
            for names in (("heads", "head_dim"), ("kv_heads", "head_dim")):
                self.add("qk_norm_sum", f"sums of squares over {names[0]}", "all-reduce",
                         self.over(*names), self.tokens * self.wide, per_layer=True)  # fmt: skip
            return
        heads = config.num_heads // split.count("heads")
        heads += config.num_kv_heads // split.count("kv_heads")
        self.add("qk_norm_sum", "sums of squares of queries and keys", "all-reduce",
                 self.over("head_dim"), self.tokens * heads * self.wide,
                 per_layer=True)  # fmt: skip

    def rows_of_tables(self) -> None:
        """Add the rows of tables whose width is sharded over devices with other tokens."""
        path, role = self.split.row_path, "table_rows"
        for rows in self.looked_up():
            share = rows * self.config.d_model * self.item / self.split.count("lookup")
            share /= self.devices(path.first)
            apart = self.devices(path.exchanged)
            self.add(role, "ids of rows of tables", "all-gather", path.exchanged, 4 * rows * apart)
            self.add(role, "rows of tables", "all-gather", path.last, share)
            self.add(role, "rows of tables", "all-to-all", path.exchanged, share)
            self.add(role, "rows of tables", "all-gather", path.first,
                     share * self.devices(path.first))  # fmt: skip

    def looked_up(self) -> list[int]:
        """Return the rows that a device looks up in each table in one tick."""
        tokens = self.tokens // self.split.count("act_norm_seq")
        if self.config.positions != "learned":
            return [tokens]
        alike = self.decoder is None and not self.workload.packed
        return [tokens, tokens // (self.b if alike else 1)]

    def weights(self, remat: Remat | None) -> None:
        """Add the gathers of layers' sharded weights, forward and (with `remat`) backward."""
        for passes in (1, 2):
            wanted = [w for path, w in self.stacked() if passes == 1 + self._again(path, remat)]
            for axes, size in self.gathered(wanted).items():
                self._gather("weight_gather", axes, self.over("act_batch", "act_seq"),
                             size * self.item, passes, per_layer=True)  # fmt: skip

    def _again(self, path: tuple[Any, ...], remat: Remat | None) -> bool:
        """Whether the backward pass gathers a layer's weight again."""
        if remat is None or (remat == "none" and not self.over("layers")):
            return False
        # A pipeline's stage keeps no weights between its passes.
        unneeded = ("out_bias_D", "shift") if remat == "none" else ()
        last = ("down_bias_D",) if self.config.norms == "before" or remat == "none" else ()
        return path[-1] not in (*unneeded, *last)

    def end_weights(self, norm_item: int, *, every_position: bool) -> None:
        """Add the gathers of the last norm and of the unembedding, once per tick.

        Args:
          norm_item: bytes of an element of the norm.
          every_position: the devices of a sequence have tokens of their own, not all the last one.
        """
        tokens = self.over("act_batch", *(["act_seq"] if every_position else []))
        for axes, size in self.ends(norm_item):
            self._gather("end_weight_gather", axes, tokens, size)

    def ends(self, norm_item: int) -> Iterator[tuple[tuple[str, ...], float]]:
        """Yield the mesh axes and gathered bytes of the last norm and of the unembedding."""
        flat = nnx.to_flat_state(self.sharded.shapes)
        for name, item in (("final_norm", norm_item), ("unembed_DV", self.item)):
            for axes, size in self.gathered(w for p, w in flat if p[0] == name).items():
                yield axes, size * item

    def _gather(
        self, role: Role, axes: tuple[str, ...], tokens: tuple[str, ...], payload_bytes: float,
        passes: int = 1, *, per_layer: bool = False,
    ) -> None:  # fmt: skip
        held = payload_bytes / self.devices(axes)
        for over in gather_steps(axes, tokens):
            held *= self.devices(over)
            self.add(role, GATHER, "all-gather", over, held, passes, per_layer=per_layer)

    def step_weights(self) -> None:
        """Add the gather of all sharded weights, once, in the model's dtype."""
        if self.strategy.gather == "step":
            weights = [w for _, w in nnx.to_flat_state(self.sharded.shapes)]
            for axes, size in self.gathered(
                weights, self.strategy.rules.table(), stacks=True
            ).items():
                self.once("step_gather", "gather all sharded weights", "all-gather", axes,
                          size * self.item)  # fmt: skip

    def stacked(self) -> list[tuple[tuple[Any, ...], Any]]:
        """Return the stacked parameters of the layers, with their paths."""
        return [(p, w) for p, w in nnx.to_flat_state(self.sharded.shapes) if p[0] == "layers"]

    def gathered(
        self, weights: Iterable[Any], table: AxisTable | None = None, *, stacks: bool = False
    ) -> dict[tuple[str, ...], float]:
        """Return the elements of a device's sharded weights once they are gathered, by mesh axes.

        Args:
          weights: shapes of whole parameters; of a stack of layers, one layer counts.
          table: the mesh axes of every logical axis; None takes those of the pass.
          stacks: count all layers of a device instead.
        """
        table = self.split.axes if table is None else table
        found: dict[tuple[str, ...], float] = {}
        for w in weights:
            names = w.out_sharding
            if axes := embed_axes(names, table):
                others = [m for n in names for m in names_of(n) if m != "embed"]
                shards = self.devices(tuple(a for m in others for a in table[m]))
                if names[0] == "layers" and not stacks:
                    shards *= w.shape[0] // self.devices(table["layers"])
                found[axes] = found.get(axes, 0.0) + w.size / shards
        return found

    def devices(self, axes: tuple[str, ...]) -> int:
        """Return the number of devices along mesh axes."""
        return math.prod(self.split.mesh_axes[a] for a in axes)

    def end(self, payload_bytes: float, passes: int = 1) -> None:
        """Add the sum that gives every stage the last stage's result, a share of the width each."""
        stage, shares = self.over("layers"), self.split.count("lookup")
        self.add("last_stage", "last stage's result", "all-reduce", stage, payload_bytes / shares,
                 passes)  # fmt: skip
        if stage:
            self.add("last_stage", "widen the last stage's result", "all-gather",
                     self.over("lookup"), payload_bytes, passes)  # fmt: skip

    def once(
        self, role: Role, what: str, kind: str, axes: tuple[str, ...], payload_bytes: float
    ) -> None:
        """Add one collective per program."""
        if axes:
            axes = tuple(a for a in self.split.mesh_axes if a in axes)
            size = self.devices(axes)
            self.transfers.append(transfer(role, what, kind, axes, size, payload_bytes, 1))
