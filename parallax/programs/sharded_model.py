"""A Transformer under a strategy, as functions of whole arrays around one `shard_map`.

`jax.shard_map` over all mesh axes wraps the whole model, and in training its gradients too, so the
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
from jax.sharding import NamedSharding, PartitionSpec

from parallax.models.config import ModelConfig
from parallax.models.parameters import FIRST_LAYERS
from parallax.models.transformer import Transformer, abstract_transformer
from parallax.parallel.cross_entropy import cross_entropy, next_token_labels
from parallax.parallel.experts import Platform
from parallax.parallel.gradients import Gradients, LocalParams, Precision, TrainFunctions
from parallax.parallel.layer_parts import StackFunctions
from parallax.parallel.order import undo_positions
from parallax.parallel.remat import Remat
from parallax.parallel.split import Split
from parallax.parallel.stage_layers import chunk_rows
from parallax.programs.check_workload import check_workload
from parallax.programs.gradient_sums import TOKENS, sum_gradients, vary_by_work
from parallax.programs.parameters import ShardedParameters, mesh_entry
from parallax.programs.router_balance import RouterBalance, of_stage, sum_over
from parallax.workload import Workload

Outputs = Literal["last", "all"]
_FLOAT32 = Precision()


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
        """Return the shapes of the inputs (`input_shapes`) with their shardings on `mesh`."""
        shapes = input_shapes(self.config, self.workload)
        return tuple(
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
            for x, spec in zip(shapes, self._input_specs, strict=True)
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

    def loss(self, mesh) -> Callable[..., jax.Array]:
        """Return the function (state, *inputs) -> loss, to be jitted.

        The loss is the mean next-token cross-entropy, plus the routers' load-balancing loss. It can
        be differentiated, but `gradients` adds up those of microbatches and keeps less.
        """
        body = functools.partial(self._loss, platform=platform_of(mesh))
        return self._map(mesh, body, PartitionSpec())

    def gradients(
        self, mesh, remat: Remat = "layer", precision: Precision = _FLOAT32
    ) -> Callable[..., tuple[jax.Array, nnx.State]]:
        """Return the function (state, *inputs) -> loss, gradients; to be jitted.

        Each device runs forward and backward passes of one microbatch at a time, adds up its own
        gradients and sums them with the others' at the end.

        Args:
          mesh: a mesh with the strategy's axes.
          remat: what the backward pass of each layer recomputes.
          precision: dtype of the gradients, and a scale that they are multiplied by.

        Returns:
          The function; gradients are those of `nnx.Param`, laid out as the optimizer's state is
          (`optimizer_specs`).
        """
        run = self._differentiated(mesh, remat, precision, everything=False)
        return lambda state, *inputs: run(state, *inputs)[:2]

    def gradients_and_logits(
        self, mesh, remat: Remat = "layer", precision: Precision = _FLOAT32
    ) -> Callable[..., tuple[jax.Array, nnx.State, jax.Array, Any]]:
        """Return `gradients` with logits [B, L, V] and RouterStats of all layers, or ()."""
        return self._differentiated(mesh, remat, precision, everything=True)

    def _differentiated(self, mesh, remat: Remat, precision: Precision, *, everything: bool):
        body = functools.partial(
            self._gradients, remat=remat, precision=precision, everything=everything,
            platform=platform_of(mesh),
        )  # fmt: skip
        trained = nnx.split_state(self.untied.optimizer_specs, nnx.Param, ...)[0]
        more = (self._logits_spec("all"), PartitionSpec()) if everything else ((), ())
        specs = PartitionSpec(), trained, *more
        inputs = self.untied.specs, *self._input_specs
        mapped = jax.shard_map(
            self.strategy.enabling(body), mesh=mesh, in_specs=inputs, out_specs=specs,
            check_vma=True,
        )  # fmt: skip

        def run(state, *inputs):
            params, stored = nnx.split_state(state, nnx.Param, ...)
            untied, back = jax.vjp(
                lambda params: self.untie(nnx.merge_state(params, stored), mesh), params
            )
            loss, grads, logits, stats = mapped(untied, *inputs)
            if self.config.tie_embeddings:
                (grads,) = back(jax.tree.map(lambda g, w: g.astype(w.dtype), grads, untied))
            grads = self.zero_padding(grads)
            if everything:
                logits = self._natural(self.of_vocabulary(logits))
            return loss, grads, logits, stats

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
        held = self.shard_bytes()
        layers = sum(jax.tree.leaves([held[n] for n in ("layers", FIRST_LAYERS) if n in held]))
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

    def _run(self, state, inputs, split: Split, keep: Callable, finish: Callable | None):
        """Return all microbatches' results and this device's router statistics, leading M each."""
        graph = abstract_transformer(self.untied.config)[0]
        model = nnx.merge(graph, state)

        def blocks(x, inputs, round=None, chunk=None):
            if chunk is None:
                return self._blocks(model, split, x, inputs, round)
            layers, outer = nnx.split_state(state, lambda path, _: path[0] == "layers", ...)
            rows = jax.tree.map(lambda w: chunk_rows(w, chunk, self.chunks), layers)
            part = nnx.merge(graph, nnx.merge_state(outer, rows))
            return self._blocks(part, split, x, inputs, round, chunk)

        functions = StackFunctions(
            embed=lambda inputs: model.embed(*self._unpack(inputs)[:2], split),
            blocks=blocks,
            keep=keep,
            finish=None if finish is None else (
                lambda x, inputs: finish(model, x, *self._unpack(inputs)[:2])
            ),
        )  # fmt: skip
        return self.strategy.layers.run(functions, inputs, self.workload.microbatches, split)

    def _blocks(self, model: Transformer, split: Split, x, inputs, round=None, chunk=None):
        _, segment_ids, expert_ids = self._unpack(inputs)
        if expert_ids is not None:
            expert_ids = jnp.moveaxis(expert_ids, 2, 0)
            expert_ids = of_stage(expert_ids, split, self.groups, self.chunks)
            if chunk is not None and self.chunks > 1:
                expert_ids = chunk_rows(expert_ids, chunk, self.chunks)
        return model.blocks(x, segment_ids, split, self.workload.seq_len, expert_ids, round)

    def _unpack(self, inputs) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """Return (tokens, segment ids, expert ids), None for those that the workload lacks."""
        rest = list(inputs)
        tokens = rest.pop(0)
        segment_ids = rest.pop(0) if self.workload.packed else None
        return tokens, segment_ids, rest.pop(0) if self.workload.replayed else None

    def _logits(self, state, *inputs, outputs: Outputs, platform):
        state, split = self.untied.entered(state, self.strategy.split(platform=platform))

        def keep(x, inputs):
            if outputs == "last":
                return split.last_token(x, self.workload.seq_len)
            return split.enter(x)

        def finish(model, x, tokens, segment_ids):
            return model.head(x, split)

        return _join(self._run(state, inputs, split, keep, finish)[0])

    def _loss(self, state, *inputs, platform):
        split = self.strategy.split("train", platform=platform)
        count = self._count(inputs, split)

        def finish(model, x, tokens, segment_ids):
            labels, weights = self._labels(tokens, segment_ids, split)
            total = model.summed_loss(x, labels, weights, split)
            return total / jnp.asarray(count, total.dtype)

        # Typed as varying here, not at each use, for those who differentiate this function.
        state = vary_by_work(state, split)
        state, split = self.untied.entered(state, split)
        losses, stats = self._run(state, inputs, split, lambda x, _: split.enter(x), finish)
        balance = self._balance(split)
        if not balance.is_used:
            return balance.with_penalty(losses.sum(), None)
        penalty = balance.term(stats.probability_E.sum(0), balance.chosen(stats.tokens_E))
        return balance.with_penalty(losses.sum(), penalty)

    def _gradients(
        self, state, *inputs, platform, remat: Remat, precision: Precision, everything: bool
    ):
        whole = self.strategy.split("train", remat, platform)
        state, split = self.untied.entered(state, whole)
        params, stored = nnx.split_state(state, nnx.Param, ...)
        chosen = self._chosen(state, inputs, split)
        functions = self._train_functions(stored, chosen, self._count(inputs, split), split,
                                          everything)  # fmt: skip
        found: Gradients = self.strategy.layers.gradients(
            functions, _local(vary_by_work(params, split)), inputs, self.workload.microbatches,
            split, precision,
        )  # fmt: skip
        balance = self._balance(split)
        loss = balance.with_penalty(found.loss, found.penalty if balance.is_used else None)
        grads = sum_gradients(nnx.merge_state(*found.params), self.strategy, whole)
        logits, stats = found.beside
        if everything:
            logits, stats = _join(logits), balance.statistics(stats) if stats else ()
        return loss, grads, logits, stats

    def _train_functions(
        self, stored: nnx.State, chosen, count, split: Split, everything: bool
    ) -> TrainFunctions:
        graph, whole = abstract_transformer(self.untied.config)
        outer, layers = _local(nnx.split_state(whole, nnx.Param, ...)[0])
        kept_outer, kept_layers = _local(stored)
        balance = self._balance(split)

        def model(outer=outer, layers=layers) -> Transformer:
            """Return the model with some of its parameters; the others are only shapes."""
            return nnx.merge(graph, nnx.merge_state(outer, kept_outer, layers, kept_layers))

        def embed(outer, inputs):
            return model(outer).embed(*self._unpack(inputs)[:2], split)

        def blocks(layers, x, inputs, chunk, group=None):
            y, stats = self._blocks(model(layers=layers), split, x, inputs, group, chunk)
            penalty = jnp.zeros((), jnp.float32)
            if balance.is_used:
                counts = balance.chosen(stats.tokens_E[None]) if chosen is None else chosen
                if chosen is not None and self.chunks > 1:
                    counts = chunk_rows(chosen, chunk, self.chunks)
                penalty = balance.term(stats.probability_E, counts)
            return y, penalty, stats if everything else ()

        def loss(outer, y, inputs):
            tokens, segment_ids, _ = self._unpack(inputs)
            x, whole = split.enter(y), model(outer)
            labels, weights = self._labels(tokens, segment_ids, split)
            if everything:
                logits = whole.head(x, split)
                losses = cross_entropy(logits, labels, split.over("vocab"))
                total = (losses * weights.astype(losses.dtype)).sum()
            else:
                logits, total = (), whole.summed_loss(x, labels, weights, split)
            return total / jnp.asarray(count, total.dtype), logits

        return TrainFunctions(embed, blocks, loss)

    def _labels(self, tokens, segment_ids, split: Split):
        """Return the labels of this device's tokens, and their weights."""
        mine = split.positions(self.workload.seq_len)
        return (jnp.take(x, mine, axis=1) for x in next_token_labels(tokens, segment_ids))

    def _count(self, inputs, split: Split) -> jax.Array | int:
        """Return the number of tokens that have a next one, over all devices."""
        if not self.workload.packed:
            return self.workload.batch * (self.workload.seq_len - 1)
        _, weights = self._labels(*self._unpack(inputs)[:2], split)
        return sum_over(weights.sum(dtype=jnp.int32), split.over(*TOKENS))

    def _chosen(self, state, inputs, split: Split) -> jax.Array | None:
        """Return each layer's choices in the whole batch, [layers, E]; None if not needed.

        The load-balancing loss is over the whole batch, so with several microbatches a forward pass
        counts the choices first.
        """
        balance = self._balance(split)
        if not balance.is_used or self.workload.microbatches == 1:
            return None
        _, stats = self._run(state, inputs, split.replace(remat=None), lambda x, _: x, None)
        return balance.chosen(stats.tokens_E)

    def _balance(self, split: Split) -> RouterBalance:
        return RouterBalance(self.config, self.workload, split, self.groups, self.chunks)


def input_shapes(config: ModelConfig, workload: Workload) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes of a program's inputs.

    Returns:
      Tokens [B, L] int32; if packed, segment ids [B, L]; with fixed routing, the expert ids of each
      token and layer [B, L, N, k].
    """
    shape = (workload.batch, workload.seq_len)
    choices = (config.stacked_layers, config.experts_per_token)
    shapes = [shape, *([shape] if workload.packed else [])]
    shapes += [(*shape, *choices)] if workload.replayed else []
    return tuple(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in shapes)


def _local(params: nnx.State) -> LocalParams:
    """Split parameters into those of the layers and the others."""
    layers, outer = nnx.split_state(params, lambda path, _: path[0] == "layers", ...)
    return LocalParams(outer, layers)


def _join(x: jax.Array) -> jax.Array:
    """Join the microbatches [M, b, ...] in order, [B, ...]."""
    return x.reshape(-1, *x.shape[2:])


def platform_of(mesh) -> Platform:
    """Return the platform of a mesh's devices, which may be virtual ones of a topology."""
    return "cpu" if mesh.devices.flat[0].platform == "cpu" else "gpu"
