"""The one manual map: a Transformer under a strategy as functions of whole arrays.

`jax.shard_map` over all mesh axes goes around the whole model and `jax.grad` outside of it, so the
collectives of the jaxpr are those of the compiled program. Nothing is materialised until `init`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallax.compression import Packed, check_shapes
from parallax.models.block import attention_shape
from parallax.models.compressing import packed_weights
from parallax.models.config import ModelConfig
from parallax.models.rope import check_whole_pairs
from parallax.models.tiled import check_tiles
from parallax.models.transformer import Transformer, abstract_transformer
from parallax.parallel.balance import total_stats
from parallax.parallel.cross_entropy import cross_entropy, next_token_labels
from parallax.parallel.experts import Platform, RouterStats, load_balancing_loss
from parallax.parallel.layer_parts import StackFunctions
from parallax.parallel.order import undo_positions
from parallax.parallel.split import Remat, Split
from parallax.parallel.stage_layers import layers_in_place, pad_layers, unpad_layers
from parallax.parallel.varying import vary_over
from parallax.rules import Phase, check_divides
from parallax.strategy import Strategy
from parallax.workload import Workload

Outputs = Literal["last", "all"]

# Logical axes over which devices use a parameter for different work: its gradient is summed over
# them, once, at the end of the backward pass.
_TOKENS = ("act_batch", "act_seq")
_DIFFERENT_WORK = {
    "tokens_VD": (*_TOKENS, "act_norm_seq", "layers"),
    "positions_LD": (*_TOKENS, "act_norm_seq", "layers"),
    "attention": (*_TOKENS, "heads", "head_dim"),
    "mlp": (*_TOKENS, "mlp", "expert"),
    # Biases of what is summed over devices are added once, after the sum.
    "out_bias_D": (*_TOKENS, "act_norm_seq"),
    "down_bias_D": (*_TOKENS, "act_norm_seq"),
    "attention_norm": (*_TOKENS, "act_norm_seq"),
    "mlp_norm": (*_TOKENS, "act_norm_seq"),
    "final_norm": (*_TOKENS, "act_norm_seq"),
    "unembed_DV": _TOKENS,
}


def param_specs(
    state: nnx.State, strategy: Strategy, phase: Phase = "prefill", root: str = "params"
) -> nnx.State:
    """PartitionSpec of every parameter, from its logical axes.

    Args:
      state: parameters (arrays or shapes) that carry `out_sharding` names.
      strategy: its rules are applied, and checked.

    Returns:
      The same tree with a PartitionSpec for every array.

    Raises:
      ValueError: a logical axis the rules do not name, a mesh axis used twice in one array, or a
        size that does not divide.
    """

    def spec(path, variable):
        where = f"Strategy '{strategy.name}': {root}/{'/'.join(str(p) for p in path)}"
        names = getattr(variable, "out_sharding", None) or (None,) * variable.ndim
        axes = strategy.rules.spec(names, phase, where=where)
        for dim, (name, split) in enumerate(zip(names, axes, strict=True)):
            check_divides(
                variable.shape[dim], split, strategy.mesh_axes,
                where=f"{where} dim {dim}", name=str(name),
            )  # fmt: skip
        return variable.replace(PartitionSpec(*(mesh_entry(a) for a in axes)))

    return nnx.map_state(spec, state)


def mesh_entry(axes: tuple[str, ...]):
    """Mesh axes of one dim as a PartitionSpec has them."""
    return None if not axes else axes[0] if len(axes) == 1 else axes


@dataclass(frozen=True)
class ShardedTransformer:
    """A Transformer under a strategy, for one workload.

    Attributes:
      config: the model.
      strategy: how it is split.
      workload: batch, length and microbatches; checked against the strategy when made.

    Raises:
      ValueError: sizes that the strategy cannot divide.
    """

    config: ModelConfig
    strategy: Strategy
    workload: Workload

    def __post_init__(self):
        _ = self.specs
        self._check_packed()
        self._check_workload()

    @functools.cached_property
    def groups(self) -> tuple[int, ...]:
        """Layers of each stage."""
        return self.strategy.layer_groups(self.config.num_layers)

    @functools.cached_property
    def shapes(self) -> nnx.State:
        """Shapes of the parameters as the strategy lays them out (see `place`)."""
        state = abstract_transformer(self.config)[1]
        return jax.eval_shape(self.place, state)

    @functools.cached_property
    def specs(self) -> nnx.State:
        """PartitionSpec of every parameter."""
        return param_specs(self.shapes, self.strategy)

    def place(self, state: nnx.State) -> nnx.State:
        """A model's parameters as this strategy lays them out: shorter stages are filled up, and a
        vocabulary that its devices do not divide."""
        layers = functools.partial(pad_layers, groups=self.groups)
        return _change(state, layers, lambda w: _fill_columns(w, self.columns))

    def unplace(self, state: nnx.State) -> nnx.State:
        """Inverse of `place`, also for gradients: the model's own parameters."""
        layers = functools.partial(unpad_layers, groups=self.groups)
        return _change(state, layers, lambda w: w[:, : self.config.vocab_size])

    def zero_padding(self, state: nnx.State) -> nnx.State:
        """Placed parameters or gradients with zeros in the layers that fill up shorter stages: a
        bias of theirs has a gradient."""
        real = layers_in_place(self.groups) >= 0
        if real.all():
            return state

        def mask(w):
            rows = jnp.asarray(real).reshape(-1, *(1,) * (w.ndim - 1))
            return jnp.where(rows, w, jnp.zeros_like(w))

        return _change(state, mask, lambda w: w)

    @property
    def columns(self) -> int:
        """Of the unembedding as it is laid out."""
        shards = self.strategy.split().count("vocab")
        return -(-self.config.vocab_size // shards) * shards

    @functools.cached_property
    def untied(self) -> "ShardedTransformer":
        """The same with an unembedding of its own: what runs inside of the map."""
        if not self.config.tie_embeddings:
            return self
        return dataclasses.replace(self, config=self.config.replace(tie_embeddings=False))

    def untie(self, state: nnx.State, mesh) -> nnx.State:
        """Parameters of `untied`. A table that is also the unembedding gets there as one.

        Cost: of a tied model, what XLA makes of transposing the table from its shares of the width
          to shares of the vocabulary; `jax.grad` brings both uses' gradients together.
        """
        if not self.config.tie_embeddings:
            return state
        # Filled up while whole rows are at hand, so that what travels is even.
        table: Any = state["tokens_VD"]
        held: Any = self.specs["tokens_VD"]
        needed: Any = self.untied.specs["unembed_DV"]
        table_VD = lax.with_sharding_constraint(
            jnp.pad(table[...], ((0, self.columns - self.config.vocab_size), (0, 0))),
            NamedSharding(mesh, held.get_value()),
        )
        unembed = lax.with_sharding_constraint(table_VD.T, NamedSharding(mesh, needed.get_value()))
        like: Any = self.untied.shapes["unembed_DV"]
        flat = [*nnx.to_flat_state(state), (("unembed_DV",), like.replace(unembed))]
        return nnx.from_flat_state(flat)

    @property
    def partitioner(self) -> str:
        """In one line, who chose the collectives."""
        return "one shard_map around the model"

    def abstract_state(self, mesh) -> nnx.State:
        """Shapes of the parameters with their shardings on `mesh`."""
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            self.shapes, self.specs,
        )  # fmt: skip

    def abstract_inputs(self, mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes with their shardings: tokens [B, L]; segment ids [B, L] if packed; experts of each
        token and layer [B, L, N, k] if replayed."""
        shape = (self.workload.batch, self.workload.seq_len)
        choices = (self.config.num_layers, self.config.experts_per_token)
        shapes = [shape, *([shape] if self.workload.packed else [])]
        shapes += [(*shape, *choices)] if self.workload.replayed else []
        return tuple(
            jax.ShapeDtypeStruct(shape, jnp.int32, sharding=NamedSharding(mesh, spec))
            for shape, spec in zip(shapes, self._input_specs, strict=True)
        )

    def init(self, key: jax.Array, mesh) -> nnx.State:
        """Parameters, made in place: every device makes only its shards."""
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.specs)

        @functools.partial(jax.jit, out_shardings=shardings)
        def make(key):
            with nnx.use_eager_sharding(False):
                return self.place(nnx.split(Transformer(self.config, rngs=nnx.Rngs(params=key)))[1])

        return make(key)

    def forward(self, mesh, outputs: Outputs = "last") -> Callable[..., jax.Array]:
        """Tokens in, logits out.

        Args:
          mesh: a mesh with the strategy's axes.
          outputs: "last" gives [B, V] of the last position; "all" gives [B, L, V] in the natural
            order of tokens.

        Returns:
          A function (state, tokens [B, L], segment_ids [B, L] if packed, expert ids [B, L, N, k] if
          replayed) -> logits, to be jitted.
        """
        body = functools.partial(self._logits, outputs=outputs, platform=platform_of(mesh))
        mapped = self._map(mesh, body, self._logits_spec(outputs))

        def run(state, *inputs):
            logits = self.of_vocabulary(mapped(state, *inputs))
            return logits if outputs == "last" else self._natural(logits)

        return run

    def loss(self, mesh, remat: Remat = "none") -> Callable[..., jax.Array]:
        """(state, *inputs) -> mean next-token cross-entropy, with the routers' load-balancing loss.

        Args:
          remat: what its gradient recomputes: nothing, a microbatch's pass, or each layer's too.
        """
        body = functools.partial(self._loss, remat=remat, platform=platform_of(mesh))
        return self._map(mesh, body, PartitionSpec())

    def loss_and_logits(self, mesh) -> Callable[..., tuple[jax.Array, tuple[jax.Array, Any]]]:
        """As `loss`, with the logits of all positions [B, L, V] and RouterStats of all layers (())
        beside it."""
        specs = PartitionSpec(), self._logits_spec("all"), PartitionSpec()
        body = functools.partial(self._loss, everything=True, platform=platform_of(mesh))
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
        """Logits without the columns that fill up the vocabulary."""
        return logits[..., : self.config.vocab_size]

    def _natural(self, logits: jax.Array) -> jax.Array:
        """Logits of all positions in the order of the tokens."""
        shards = self.strategy.split().count("act_seq")
        length = self.workload.seq_len // shards
        part, mesh = self.strategy.attention, self.strategy.mesh_axes
        held = [part.positions(index, length, mesh) for index in range(shards)]
        return undo_positions(logits, np.concatenate(held))

    def weight_bytes(self) -> float:
        """Bytes of weights a device reads in one forward pass: its layers once a tick, its share of
        the unembedding once. A bound that holds while no cache keeps a layer between microbatches.
        """
        ticks = self.strategy.layers.ticks(
            self.workload.microbatches, self.strategy.split().count("layers")
        )
        layers = sum(jax.tree.leaves(self.shard_bytes()["layers"]))
        head = sum(jax.tree.leaves(self.untied.shard_bytes()["unembed_DV"]))
        return float(ticks * layers + head)

    def shard_bytes(self) -> nnx.State:
        """Bytes of every parameter that a device holds, as they are stored."""
        return jax.tree.map(
            lambda x, spec: self._shard_size(x, spec) * x.dtype.itemsize, self.shapes, self.specs
        )

    def gradient_sums(self) -> dict[tuple[str, ...], int]:
        """Elements a device sums after a backward pass, by the mesh axes it sums them over."""
        split = self.strategy.split("train")
        sums: dict[tuple[str, ...], int] = {}
        leaves = jax.tree.leaves(self.shapes), jax.tree.leaves(self.specs)
        paths = [path for path, _ in nnx.to_flat_state(self.shapes)]
        for path, w, spec in zip(paths, *leaves, strict=True):
            different = set(_work(path, split)) - set(_axes(spec))
            axes = tuple(a for a in self.strategy.mesh_axes if a in different)
            if axes:
                sums[axes] = sums.get(axes, 0) + self._shard_size(w, spec)
        return sums

    def _shard_size(self, x, spec: PartitionSpec) -> int:
        return x.size // math.prod(self.strategy.mesh_axes[a] for a in _axes(spec))

    @property
    def _input_specs(self) -> tuple[PartitionSpec, ...]:
        batch = mesh_entry(self.strategy.rules.table()["act_batch"])
        rows = PartitionSpec(batch, None)
        specs = [rows, *([rows] if self.workload.packed else [])]
        specs += [PartitionSpec(batch, None, None, None)] if self.workload.replayed else []
        return tuple(specs)

    def _map(self, mesh, body, out_specs):
        mapped = jax.shard_map(
            self.strategy.trusting(body), mesh=mesh,
            in_specs=(self.untied.specs, *self._input_specs), out_specs=out_specs, check_vma=True,
        )  # fmt: skip
        return lambda state, *inputs: mapped(self.untie(state, mesh), *inputs)

    def _run(self, state, inputs, split: Split, keep: Callable, finish: Callable):
        """Results of all microbatches and what this device's routers did, with a leading M each."""
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
        """(tokens, segment ids, expert ids); None where the workload has none."""
        rest = list(inputs)
        tokens = rest.pop(0)
        segment_ids = rest.pop(0) if self.workload.packed else None
        return tokens, segment_ids, rest.pop(0) if self.workload.replayed else None

    def _of_stage(self, x, split: Split):
        """Of an array with a leading N (all layers), this device's layers."""
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

        # Varied here rather than where they are used: devices add up their own gradients over
        # layers and microbatches, and sum them once.
        state = nnx.map_state(
            lambda path, w: w.replace(vary_over(w[...], _work(path, split))), state
        )
        (sums, logits), stats = self._run(state, inputs, split, lambda x, _: split.enter(x), finish)
        axes = split.over(*_TOKENS)
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
        """The load-balancing loss of all layers, and their RouterStats [N, ...] on every device."""
        tokens = split.over(*_TOKENS)
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

    def _check_packed(self) -> None:
        """A device's shard of a compressed weight has to be one that it can read alone."""
        if self.config.compression is None:
            return
        shapes, specs = (dict(nnx.to_flat_state(x)) for x in (self.shapes, self.specs))
        mesh = self.strategy.mesh.abstract()

        def local(path):
            if path not in shapes:
                return None
            sharding = NamedSharding(mesh, specs[path].get_value())
            shape = sharding.shard_shape(shapes[path].shape)
            return jax.ShapeDtypeStruct(shape[1:], shapes[path].dtype)

        for path, w in packed_weights(self.config).items():
            packed = Packed(*(local((*path, name)) for name in Packed._fields))
            where = f"Strategy '{self.strategy.name}': a device's share of {'/'.join(path)}"
            check_shapes(packed, w.form, w.inputs[-1], where)

    def _check_workload(self) -> None:
        split, workload = self.strategy.split(), self.workload
        where = f"Strategy '{self.strategy.name}'"
        mesh = self.strategy.mesh_axes
        check_divides(
            workload.batch, split.over("act_batch"), mesh,
            where=f"{where}: tokens dim 0", name="act_batch",
        )  # fmt: skip
        check_divides(
            workload.seq_len, split.over("act_seq", "act_norm_seq"), mesh,
            where=f"{where}: tokens dim 1", name="act_seq",
        )  # fmt: skip
        if self.config.positions == "rope":
            check_whole_pairs(self.config.head_dim, split)
        local = workload.batch // split.count("act_batch")
        if workload.microbatches < 1 or local % workload.microbatches:
            raise ValueError(
                f"{where}: {workload.microbatches} microbatches do not divide the {local} "
                f"sequences a device has (batch {workload.batch}). Use a divisor of {local}."
            )
        if workload.replayed and not self.config.num_experts:
            raise ValueError(
                f"Model '{self.config.name}' has no experts to replay choices of. Use a workload "
                "without replayed=True."
            )
        calls = attention_shape(
            self.config, split, local // workload.microbatches, workload.seq_len,
            packed=workload.packed,
        )  # fmt: skip
        self.strategy.attention.work(calls, mesh)  # what it cannot split it refuses here
        if (tiles := getattr(self.strategy.layers, "tiles", None)) is not None:
            try:
                check_tiles(self.config, split, tiles)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        if self.config.positions == "learned" and workload.seq_len > self.config.max_seq_len:
            raise ValueError(
                f"Model '{self.config.name}': seq_len {workload.seq_len} is longer than its table "
                f"of learned positions, {self.config.max_seq_len}. Use at most that."
            )


def _change(state: nnx.State, layers: Callable, columns: Callable) -> nnx.State:
    """Parameters with stacked layers and the unembedding changed."""

    def change(path, w):
        how = layers if path[0] == "layers" else columns if path[0] == "unembed_DV" else None
        return w if how is None else w.replace(how(w[...]))

    return nnx.map_state(change, state)


def _fill_columns(w_DV: jax.Array, columns: int) -> jax.Array:
    missing = columns - w_DV.shape[1]
    return jnp.pad(w_DV, ((0, 0), (0, missing))) if missing else w_DV


def _join(x: jax.Array) -> jax.Array:
    """Microbatches [M, b, ...] one after the other, [B, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _axes(spec: PartitionSpec) -> tuple[str, ...]:
    """All mesh axes a PartitionSpec names."""
    return tuple(
        a for entry in spec if entry for a in ((entry,) if isinstance(entry, str) else entry)
    )


def _work(path, split: Split) -> tuple[str, ...]:
    name = next(name for name in reversed(path) if name in _DIFFERENT_WORK)
    return split.over(*_DIFFERENT_WORK[name])


def platform_of(mesh) -> Platform:
    """What a mesh's devices are, virtual ones of a topology included."""
    return "cpu" if mesh.devices.flat[0].platform == "cpu" else "gpu"
