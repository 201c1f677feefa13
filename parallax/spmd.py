"""The one manual map: a Transformer under a strategy as functions of whole arrays.

`jax.shard_map` over all mesh axes goes around the whole model and `jax.grad` outside of it, so the
collectives of the jaxpr are those of the compiled program. Nothing is materialised until `init`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallax.models.block import attention_shape
from parallax.models.config import ModelConfig
from parallax.models.rope import check_whole_pairs
from parallax.models.transformer import Transformer
from parallax.parallel.cross_entropy import cross_entropy, next_token_labels
from parallax.parallel.layer_parts import StackFunctions
from parallax.parallel.order import undo_positions
from parallax.parallel.varying import vary_over
from parallax.rules import Phase, check_divides
from parallax.strategy import Strategy
from parallax.workload import Workload

Outputs = Literal["last", "all"]


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


@functools.lru_cache(maxsize=64)
def abstract_transformer(config: ModelConfig) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph and shapes of a Transformer; no parameter is made."""
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(params=0)))
        return nnx.split(model)


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
        self._check_workload()

    @functools.cached_property
    def specs(self) -> nnx.State:
        """PartitionSpec of every parameter."""
        return param_specs(abstract_transformer(self.config)[1], self.strategy)

    @property
    def partitioner(self) -> str:
        """In one line, who chose the collectives."""
        return "one shard_map around the model"

    def abstract_state(self, mesh) -> nnx.State:
        """Shapes of the parameters with their shardings on `mesh`."""
        state = abstract_transformer(self.config)[1]
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            state, self.specs,
        )  # fmt: skip

    def abstract_inputs(self, mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of tokens (and segment ids if packed) with their shardings."""
        shape = (self.workload.batch, self.workload.seq_len)
        struct = jax.ShapeDtypeStruct(
            shape, jnp.int32, sharding=NamedSharding(mesh, self._input_spec)
        )
        return (struct, struct) if self.workload.packed else (struct,)

    def init(self, key: jax.Array, mesh) -> nnx.State:
        """Parameters, made in place: every device makes only its shards."""
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.specs)

        @functools.partial(jax.jit, out_shardings=shardings)
        def make(key):
            with nnx.use_eager_sharding(False):
                return nnx.split(Transformer(self.config, rngs=nnx.Rngs(params=key)))[1]

        return make(key)

    def forward(self, mesh, outputs: Outputs = "last") -> Callable[..., jax.Array]:
        """Tokens in, logits out.

        Args:
          mesh: a mesh with the strategy's axes.
          outputs: "last" gives [B, V] of the last position; "all" gives [B, L, V] in the natural
            order of tokens.

        Returns:
          A function (state, tokens [B, L], segment_ids [B, L] if packed) -> logits, to be jitted.
        """
        mapped = self._map(
            mesh, functools.partial(self._logits, outputs=outputs), self._logits_spec(outputs)
        )

        def run(state, *inputs):
            logits = mapped(state, *inputs)
            return logits if outputs == "last" else self._natural(logits)

        return run

    def loss(self, mesh) -> Callable[..., jax.Array]:
        """(state, tokens, segment_ids if packed) -> mean next-token cross-entropy, a scalar."""
        return lambda state, *inputs: self.loss_and_logits(mesh)(state, *inputs)[0]

    def loss_and_logits(self, mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """As `loss`, with the logits of all positions [B, L, V] beside it."""
        specs = (PartitionSpec(), self._logits_spec("all"))
        mapped = self._map(mesh, self._loss, specs)

        def run(state, *inputs):
            loss, logits = mapped(state, *inputs)
            return loss, self._natural(logits)

        return run

    def _logits_spec(self, outputs: Outputs) -> PartitionSpec:
        table = self.strategy.rules.table()
        batch, vocab = mesh_entry(table["act_batch"]), mesh_entry(table["vocab"])
        if outputs == "last":
            return PartitionSpec(batch, vocab)
        return PartitionSpec(batch, mesh_entry(table["act_seq"]), vocab)

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
        state = abstract_transformer(self.config)[1]
        sizes = jax.tree.map(self._shard_bytes, state, self.specs)
        layers = sum(jax.tree.leaves(sizes["layers"]))
        return float(ticks * layers + sum(jax.tree.leaves(sizes["unembed_DV"])))

    def _shard_bytes(self, x, spec: PartitionSpec) -> int:
        return x.size * x.dtype.itemsize // self._shards(spec)

    def _shards(self, spec: PartitionSpec) -> int:
        named = [
            a for entry in spec if entry for a in ((entry,) if isinstance(entry, str) else entry)
        ]
        return math.prod(self.strategy.mesh_axes[a] for a in named)

    @property
    def _input_spec(self) -> PartitionSpec:
        return PartitionSpec(mesh_entry(self.strategy.rules.table()["act_batch"]), None)

    def _map(self, mesh, body, out_specs):
        inputs = (self._input_spec,) * (2 if self.workload.packed else 1)
        return jax.shard_map(
            body, mesh=mesh, in_specs=(self.specs, *inputs), out_specs=out_specs, check_vma=True
        )

    def _hidden(self, state, inputs, outputs: Outputs):
        """This device's final residual stream: [B, D] of the last position, or [B, L, D]."""
        graph = abstract_transformer(self.config)[0]
        model, split = nnx.merge(graph, state), self.strategy.split()
        seq_len = self.workload.seq_len

        def unpack(inputs):
            return inputs if self.workload.packed else (inputs[0], None)

        def keep(x):
            return split.last_token(x, seq_len) if outputs == "last" else split.enter(x)

        functions = StackFunctions(
            embed=lambda inputs: model.embed(*unpack(inputs), split),
            blocks=lambda x, inputs: model.blocks(x, unpack(inputs)[1], split, seq_len),
            keep=keep,
        )
        hidden = self.strategy.layers.run(functions, inputs, self.workload.microbatches, split)
        return model, split, hidden

    def _logits(self, state, *inputs, outputs: Outputs):
        model, split, hidden = self._hidden(state, inputs, outputs)
        return model.head(hidden, split)

    def _loss(self, state, *inputs):
        model, split, hidden = self._hidden(state, inputs, "all")
        logits = model.head(hidden, split)
        labels, weights = next_token_labels(inputs[0], inputs[1] if self.workload.packed else None)
        mine = split.positions(self.workload.seq_len)
        labels, weights = jnp.take(labels, mine, axis=1), jnp.take(weights, mine, axis=1)
        losses = cross_entropy(logits, labels, split.over("vocab"))
        weights = weights.astype(losses.dtype)
        axes = split.over("act_batch", "act_seq")
        sums = (losses * weights).sum(), weights.sum()
        total, count = lax.psum(tuple(vary_over(x, axes) for x in sums), axes) if axes else sums
        return total / count, logits

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
        calls = attention_shape(
            self.config, split, local // workload.microbatches, workload.seq_len,
            packed=workload.packed,
        )  # fmt: skip
        self.strategy.attention.work(calls, mesh)  # what it cannot split it refuses here
        if self.config.positions == "learned" and workload.seq_len > self.config.max_seq_len:
            raise ValueError(
                f"Model '{self.config.name}': seq_len {workload.seq_len} is longer than its table "
                f"of learned positions, {self.config.max_seq_len}. Use at most that."
            )
