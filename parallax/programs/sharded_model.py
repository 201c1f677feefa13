"""A Transformer under a strategy, as functions of whole arrays around one `shard_map`.

`jax.shard_map` over all mesh axes wraps the whole model and `jax.grad` goes outside of it, so the
collectives in the jaxpr are those of the compiled program.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallax.models.block import attention_shape
from parallax.models.config import ModelConfig
from parallax.models.rope import check_whole_pairs
from parallax.models.tiled import check_tiles
from parallax.models.transformer import abstract_transformer
from parallax.parallel.balance import total_stats
from parallax.parallel.cross_entropy import cross_entropy, next_token_labels
from parallax.parallel.experts import Platform, RouterStats, load_balancing_loss
from parallax.parallel.layer_parts import StackFunctions
from parallax.parallel.order import undo_positions
from parallax.parallel.split import Remat, Split
from parallax.parallel.stage_layers import pad_layers, unpad_layers
from parallax.parallel.varying import vary_over
from parallax.programs.parameters import TOKENS, ShardedParameters, different_work, mesh_entry
from parallax.rules import check_divides
from parallax.strategy import Strategy
from parallax.workload import Workload

Outputs = Literal["last", "all"]


@dataclass(frozen=True)
class ShardedTransformer(ShardedParameters):
    """A Transformer under a strategy, for one workload.

    Attributes:
      config, strategy: the model, and how it is split.
      workload: batch, length and microbatches; `check_workload` checks them.

    Raises:
      ValueError: sizes that the strategy cannot divide.
    """

    workload: Workload

    def __post_init__(self):
        super().__post_init__()
        check_workload(self.config, self.strategy, self.workload)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.config.name

    @property
    def partitioner(self) -> str:
        """The origin of the collectives, in one line for a report."""
        return "one shard_map around the model"

    def abstract_inputs(self, mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shapes of the inputs with their shardings on `mesh`.

        Returns:
          Tokens [B, L] int32; if packed, segment ids [B, L]; with fixed routing, the expert ids of
          each token and layer [B, L, N, k].
        """
        shape = (self.workload.batch, self.workload.seq_len)
        choices = (self.config.num_layers, self.config.experts_per_token)
        shapes = [shape, *([shape] if self.workload.packed else [])]
        shapes += [(*shape, *choices)] if self.workload.replayed else []
        return tuple(
            jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, spec))
            for shape, spec in zip(shapes, self._input_specs, strict=True)
        )

    def forward(self, mesh, outputs: Outputs = "last") -> Callable[..., jax.Array]:
        """Return the forward pass: tokens in, logits out.

        Args:
          mesh: a mesh with the strategy's axes.
          outputs: "last" gives the last position's logits [B, V]; "all" gives [B, L, V] in the
            order of the tokens.

        Returns:
          A function (state, *inputs) -> logits, to be jitted; inputs as in `abstract_inputs`.
        """
        body = functools.partial(self._logits, outputs=outputs, platform=platform_of(mesh))
        mapped = self._map(mesh, body, self._logits_spec(outputs))

        def run(state, *inputs):
            logits = self.of_vocabulary(mapped(state, *inputs))
            return logits if outputs == "last" else self._natural(logits)

        return run

    def loss(self, mesh, remat: Remat = "none") -> Callable[..., jax.Array]:
        """Return the function (state, *inputs) -> loss, to be jitted or differentiated.

        The loss is the mean next-token cross-entropy, plus the routers' load-balancing loss.

        Args:
          mesh: a mesh with the strategy's axes.
          remat: what the gradient recomputes: "none"; "microbatch", a microbatch's forward pass; or
            "layer", each layer's as well.
        """
        body = functools.partial(self._loss, remat=remat, platform=platform_of(mesh))
        return self._map(mesh, body, PartitionSpec())

    def loss_and_logits(
        self, mesh, remat: Remat = "none"
    ) -> Callable[..., tuple[jax.Array, tuple[jax.Array, Any]]]:
        """Return the function (state, *inputs) -> loss, (logits [B, L, V], RouterStats or ()).

        The loss is that of `loss`; the statistics are those of all layers.
        """
        specs = PartitionSpec(), self._logits_spec("all"), PartitionSpec()
        body = functools.partial(
            self._loss, remat=remat, everything=True, platform=platform_of(mesh)
        )
        mapped = self._map(mesh, body, specs)

        def run(state, *inputs):
            loss, logits, stats = mapped(state, *inputs)
            return loss, (self._natural(self.of_vocabulary(logits)), stats)

        return run

    def _logits_spec(self, outputs: Outputs) -> PartitionSpec:
        table = self.strategy.rules.table()
        batch, vocab = mesh_entry(table["act_batch"]), mesh_entry(table["vocab"])
        if outputs == "last":
            return PartitionSpec(batch, vocab)
        return PartitionSpec(batch, mesh_entry(table["act_seq"]), vocab)

    def of_vocabulary(self, logits: jax.Array) -> jax.Array:
        """Return logits without the padding columns of the vocabulary."""
        return logits[..., : self.config.vocab_size]

    def _natural(self, logits: jax.Array) -> jax.Array:
        """Return the logits of all positions in the order of the tokens."""
        shards = self.strategy.split().count("act_seq")
        length = self.workload.seq_len // shards
        part, mesh = self.strategy.attention, self.strategy.mesh_axes
        held = [part.positions(index, length, mesh) for index in range(shards)]
        return undo_positions(logits, np.concatenate(held))

    def weight_bytes(self, microbatches: int | None = None) -> float:
        """Return the bytes of weights that a device reads in one forward pass.

        It reads its layers once per tick and its share of the unembedding once, as long as no cache
        keeps a layer between microbatches.

        Args:
          microbatches: microbatches of the pass; None takes the workload's.
        """
        ticks = self.strategy.layers.ticks(
            self.workload.microbatches if microbatches is None else microbatches,
            self.strategy.split().count("layers"),
        )
        layers = sum(jax.tree.leaves(self.shard_bytes()["layers"]))
        head = sum(jax.tree.leaves(self.untied.shard_bytes()["unembed_DV"]))
        return float(ticks * layers + head)

    @property
    def _input_specs(self) -> tuple[PartitionSpec, ...]:
        batch = mesh_entry(self.strategy.rules.table()["act_batch"])
        rows = PartitionSpec(batch, None)
        specs = [rows, *([rows] if self.workload.packed else [])]
        specs += [PartitionSpec(batch, None, None, None)] if self.workload.replayed else []
        return tuple(specs)

    def _map(self, mesh, body, out_specs):
        mapped = jax.shard_map(
            self.strategy.enabling(body), mesh=mesh,
            in_specs=(self.untied.specs, *self._input_specs), out_specs=out_specs, check_vma=True,
        )  # fmt: skip
        return lambda state, *inputs: mapped(self.untie(state, mesh), *inputs)

    def _run(self, state, inputs, split: Split, keep: Callable, finish: Callable):
        """Return all microbatches' results and this device's router statistics, leading M each."""
        graph = abstract_transformer(self.untied.config)[0]
        model, seq_len = nnx.merge(graph, state), self.workload.seq_len

        def blocks(x, inputs, round=None):
            _, segment_ids, expert_ids = self._unpack(inputs)
            if expert_ids is not None:
                expert_ids = self._of_stage(jnp.moveaxis(expert_ids, 2, 0), split)
            return model.blocks(x, segment_ids, split, seq_len, expert_ids, round)

        functions = StackFunctions(
            embed=lambda inputs: model.embed(*self._unpack(inputs)[:2], split),
            blocks=blocks,
            keep=keep,
            finish=lambda x, inputs: finish(model, x, *self._unpack(inputs)[:2]),
        )
        return self.strategy.layers.run(functions, inputs, self.workload.microbatches, split)

    def _unpack(self, inputs) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """Return (tokens, segment ids, expert ids), None for those that the workload lacks."""
        rest = list(inputs)
        tokens = rest.pop(0)
        segment_ids = rest.pop(0) if self.workload.packed else None
        return tokens, segment_ids, rest.pop(0) if self.workload.replayed else None

    def _of_stage(self, x, split: Split):
        """Return this device's layers of an array with a leading N (all layers)."""
        axes = split.over("layers")
        if not axes:
            return x
        count = max(self.groups)
        first = lax.axis_index(axes) * count
        return lax.dynamic_slice_in_dim(pad_layers(x, self.groups), first, count)

    def _logits(self, state, *inputs, outputs: Outputs, platform):
        split = self.strategy.split(platform=platform)

        def keep(x, inputs):
            if outputs == "last":
                return split.last_token(x, self.workload.seq_len)
            return split.enter(x)

        def finish(model, x, tokens, segment_ids):
            return model.head(x, split)

        return _join(self._run(state, inputs, split, keep, finish)[0])

    def _loss(self, state, *inputs, platform, remat: Remat = "none", everything: bool = False):
        split = self.strategy.split("train", remat, platform)
        mine = split.positions(self.workload.seq_len)

        def finish(model, x, tokens, segment_ids):
            logits = model.head(x, split)
            labels, weights = next_token_labels(tokens, segment_ids)
            labels, weights = jnp.take(labels, mine, axis=1), jnp.take(weights, mine, axis=1)
            losses = cross_entropy(logits, labels, split.over("vocab"))
            weights = weights.astype(losses.dtype)
            sums = (losses * weights).sum(), weights.sum()
            return sums, logits if everything else ()

        # Typed as varying here, not at each use: a device adds up its own gradients over layers and
        # microbatches, and devices then sum them once.
        state = nnx.map_state(
            lambda path, w: w.replace(vary_over(w[...], different_work(path, split))), state
        )
        (sums, logits), stats = self._run(state, inputs, split, lambda x, _: split.enter(x), finish)
        axes = split.over(*TOKENS)
        sums = tuple(vary_over(x.sum(), axes) for x in sums)
        total, count = lax.psum(sums, axes) if axes else sums
        loss = total / count
        if self.config.num_experts:
            if not everything:  # the loss needs two of the statistics
                stats = stats._replace(smallest_margin=None, flips=None, dropped=None)
            balance, stats = self._balance(stats, split)
            loss = loss + balance.astype(loss.dtype)
        return (loss, _join(logits), stats) if everything else loss

    def _balance(self, stats: RouterStats, split: Split):
        """Return the load-balancing loss of all layers and their RouterStats [N, ...]."""
        tokens = split.over(*TOKENS)
        alike = tuple(a for a in split.over("mlp", "expert") if a not in tokens)
        stats = total_stats(stats, tokens, alike)
        workload, config = self.workload, self.config
        losses = jax.vmap(
            lambda s: load_balancing_loss(s, workload.tokens, config.experts_per_token)
        )(stats)
        stage = split.over("layers")
        if not stage:
            return config.load_balance * losses.sum(), stats
        real = self._of_stage(jnp.ones(config.num_layers, losses.dtype), split)
        balance = config.load_balance * lax.psum((losses * real).sum(), stage)
        if stats.flips is None:
            return balance, stats
        gathered = jax.tree.map(
            lambda x: unpad_layers(
                lax.all_gather(x, stage, tiled=True, to="invarying"), self.groups
            ),
            jax.tree.map(lax.stop_gradient, stats),
        )
        return balance, gathered


def check_workload(config: ModelConfig, strategy: Strategy, workload: Workload) -> None:
    """Raise ValueError if a model under a strategy cannot run a workload; the error says why."""
    split = strategy.split()
    where = f"Strategy '{strategy.name}'"
    mesh = strategy.mesh_axes
    check_divides(
        workload.batch, split.over("act_batch"), mesh,
        where=f"{where}: tokens dim 0", name="act_batch",
    )  # fmt: skip
    check_divides(
        workload.seq_len, split.over("act_seq", "act_norm_seq"), mesh,
        where=f"{where}: tokens dim 1", name="act_seq",
    )  # fmt: skip
    if config.positions == "rope":
        check_whole_pairs(config.head_dim, split)
    local = workload.batch // split.count("act_batch")
    if workload.microbatches < 1 or local % workload.microbatches:
        raise ValueError(
            f"{where}: {workload.microbatches} microbatches do not divide the {local} "
            f"sequences a device has (batch {workload.batch}). Use a divisor of {local}."
        )
    if workload.replayed and not config.num_experts:
        raise ValueError(
            f"Model '{config.name}' has no experts to fix the routing of. Use a workload "
            "without replayed=True."
        )
    calls = attention_shape(
        config, split, local // workload.microbatches, workload.seq_len,
        packed=workload.packed,
    )  # fmt: skip
    strategy.attention.work(calls, mesh)  # raises ValueError for shapes that it cannot split
    if (tiles := getattr(strategy.layers, "tiles", None)) is not None:
        try:
            check_tiles(config, split, tiles)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if config.positions == "learned" and workload.seq_len > config.max_seq_len:
        raise ValueError(
            f"Model '{config.name}': seq_len {workload.seq_len} is longer than its table "
            f"of learned positions, {config.max_seq_len}. Use at most that."
        )


def _join(x: jax.Array) -> jax.Array:
    """Join the microbatches [M, b, ...] in order, [B, ...]."""
    return x.reshape(-1, *x.shape[2:])


def platform_of(mesh) -> Platform:
    """Return the platform of a mesh's devices, which may be virtual ones of a topology."""
    return "cpu" if mesh.devices.flat[0].platform == "cpu" else "gpu"
