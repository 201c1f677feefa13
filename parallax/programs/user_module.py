"""The programs of user modules: NNX modules with logical axes, partitioned by XLA from rules.

The module computes logits from tokens, [B, L] int32 -> [B, L, ...]. Its parameters are sharded by
their logical axes, its inputs by `act_batch` and `act_seq`; XLA chooses the collectives.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from jax.sharding import NamedSharding, PartitionSpec

from parallax.parallel.attention_parts import Local
from parallax.parallel.layer_parts import Scan
from parallax.programs.parameters import mesh_entry, param_specs
from parallax.rules import check_divides
from parallax.strategy import Strategy
from parallax.workload import Workload


@dataclass(frozen=True, eq=False)
class ShardedModule:
    """A user module under a strategy, for one workload.

    Attributes:
      construct: makes the module; called under `nnx.eval_shape` unless the module is run.
      strategy: the strategy, of which the rules and mesh are used. Its parts belong to our own
        model and are not used.
      workload: batch and length; microbatches must be 1.

    Raises:
      ValueError: sizes or axes that the rules cannot shard, or a constructor that changes
        something made outside of it.
      NotImplementedError: a strategy whose layers are a pipeline.
    """

    construct: Callable[[], nnx.Module]
    strategy: Strategy
    workload: Workload

    def __post_init__(self):
        name = self.strategy.name
        if not isinstance(self.strategy.layers, Scan):
            raise NotImplementedError(
                f"Strategy '{name}': layers={self.strategy.layers} cannot cut a user module "
                "into stages. Use a strategy without stages, such as tensor_pipeline(8, stage=1), "
                "ring_sequence or data_parallel."
            )
        if self.workload.microbatches != 1:
            raise ValueError(
                f"Strategy '{name}': a user module runs its batch whole, got "
                f"microbatches={self.workload.microbatches}. Use 1."
            )
        mesh_axes = self.strategy.mesh_axes
        for dim, axis in enumerate(("act_batch", "act_seq")):
            size = (self.workload.batch, self.workload.seq_len)[dim]
            check_divides(size, self.strategy.rules.axes(axis), mesh_axes,
                          where=f"Strategy '{name}': tokens dim {dim}", name=axis)  # fmt: skip
        _ = self.specs

    @property
    def partitioner(self) -> str:
        """The origin of the collectives, in one line for a report."""
        note = "GSPMD from the rules"
        if not isinstance(self.strategy.attention, Local):
            note += (
                f"; attention={self.strategy.attention} is used only where the module itself calls "
                "parallax.parallel"
            )
        return note

    @functools.cached_property
    def _shapes(self) -> nnx.Module:
        try:
            with nnx.use_eager_sharding(False):
                return nnx.eval_shape(self.construct)
        except TraceContextError as error:
            raise ValueError(
                "Program: the function that makes the module changes something made outside of it, "
                f"such as an nnx.Rngs ({error}). Make it inside: lambda: MyModule(nnx.Rngs(0))."
            ) from error

    @property
    def name(self) -> str:
        """The name of the module's class."""
        return type(self._shapes).__name__

    @functools.cached_property
    def abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        """The graph and shapes of the module."""
        return nnx.split(self._shapes)

    @functools.cached_property
    def specs(self) -> nnx.State:
        """The PartitionSpec of every parameter."""
        return param_specs(self.abstract[1], self.strategy)

    def abstract_state(self, mesh) -> nnx.State:
        """Return the shapes of the parameters with their shardings on `mesh`."""
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            self.abstract[1], self.specs,
        )  # fmt: skip

    def abstract_inputs(self, mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shape of the tokens with its sharding on `mesh`."""
        shape = (self.workload.batch, self.workload.seq_len)
        sharding = NamedSharding(mesh, self._input_spec)
        return (jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding),)

    def init(self) -> nnx.State:
        """Return the parameters on one device, as the constructor makes them."""
        with nnx.use_eager_sharding(False):
            return nnx.split(self.construct())[1]

    def init_sharded(self, mesh) -> nnx.State:
        """Return the parameters as the constructor makes them; each device makes its own shards."""
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.specs)
        return jax.jit(self.init, out_shardings=shardings)()

    def forward(self, mesh, outputs: str = "all") -> Callable[..., jax.Array]:
        """Return the function (state, tokens [B, L]) -> output; "last" takes its last position."""

        def run(state, tokens):
            tokens = jax.lax.with_sharding_constraint(tokens, NamedSharding(mesh, self._input_spec))
            logits = nnx.merge(self.abstract[0], state)(tokens)
            return logits[:, -1] if outputs == "last" else logits

        return run

    def reference(self, state: nnx.State, tokens: jax.Array) -> jax.Array:
        """Return the module's output on one device."""
        return nnx.merge(self.abstract[0], state)(tokens)

    @property
    def _input_spec(self) -> PartitionSpec:
        table = self.strategy.rules.table()
        return PartitionSpec(mesh_entry(table["act_batch"]), mesh_entry(table["act_seq"]))
