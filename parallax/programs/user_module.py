"""The programs of user modules: modules with logical axes, partitioned by XLA from rules.

The module computes logits from tokens, [B, L] int32 -> [B, L, ...]. Its parameters are sharded by
their logical axes, its inputs by `act_batch` and `act_seq`; XLA chooses the collectives.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.attention_parts import Local
from parallax.parallel.layer_parts import Scan
from parallax.programs.module_kinds import Constructor, UserModule, user_module
from parallax.programs.module_notes import AskedNames, replication_note, unknown_names_note
from parallax.programs.parameters import array_spec, mesh_entry
from parallax.rules import Rules, check_divides
from parallax.strategy import Strategy
from parallax.workload import Workload


@dataclass(frozen=True, eq=False)
class ShardedModule:
    """A user module under a strategy, for one workload.

    Attributes:
      construct: makes the module, or a Linen module; only shapes are made unless it is run.
      strategy: the strategy, of which the rules and mesh are used. Its parts belong to our own
        model and are not used.
      workload: batch and length; microbatches must be 1.

    Raises:
      ValueError: sizes or axes that the rules cannot shard, a constructor that changes something
        made outside of it, or that makes no module.
      NotImplementedError: a strategy whose layers are a pipeline.
    """

    construct: Constructor
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
    def module(self) -> UserModule:
        """The module as functions of its state."""
        shape = (self.workload.batch, self.workload.seq_len)
        return user_module(self.construct, jax.ShapeDtypeStruct(shape, jnp.int32))

    @property
    def name(self) -> str:
        """The name of the module's class."""
        return self.module.name

    @functools.cached_property
    def rules(self) -> Rules:
        """The strategy's rules, in which a mesh axis also stands for itself.

        Linen leaves a dim whole whose logical axis no rule names, so a Linen module's unknown names
        are mapped to None. Elsewhere they are refused.
        """
        rules = self.strategy.rules
        more = {axis: axis for axis in self.strategy.mesh_axes if axis not in rules.table()}
        more |= dict.fromkeys(self._unknown_names)
        return dataclasses.replace(rules, extra={**dict(rules.extra), **more})

    @functools.cached_property
    def specs(self) -> Any:
        """The PartitionSpec of every array of the state, as a tree like the state."""
        specs = [
            array_spec(
                leaf.shape.shape,
                (None,) * leaf.shape.ndim if leaf.names is None else leaf.names,
                self.rules,
                self.strategy.mesh_axes,
                where=f"Strategy '{self.strategy.name}': params/{leaf.path}",
            )
            for leaf in self.module.leaves
        ]
        return jax.tree.unflatten(jax.tree.structure(self.module.shapes), specs)

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """The notes of a report about what the rules did not split, one line each."""
        asked = AskedNames()
        mesh = self.strategy.mesh.abstract()
        jax.eval_shape(
            lambda state, tokens: self._run(state, tokens, mesh, ((asked, None),)),
            self.module.shapes, *self.abstract_inputs(mesh),
        )  # fmt: skip
        unknown = self._unknown_names | (asked.names - set(self.rules.table()))
        notes = replication_note(self.module, self.strategy), unknown_names_note(unknown)
        return tuple(filter(None, notes))

    def abstract_state(self, mesh) -> Any:
        """Return the shapes of the state with their shardings on `mesh`."""
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            self.module.shapes, self.specs,
        )  # fmt: skip

    def abstract_inputs(self, mesh) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Return the shape of the tokens with its sharding on `mesh`."""
        shape = (self.workload.batch, self.workload.seq_len)
        sharding = NamedSharding(mesh, self._input_spec)
        return (jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding),)

    def init(self) -> Any:
        """Return the state on one device, as the constructor makes it."""
        return self.module.make()

    def init_sharded(self, mesh) -> Any:
        """Return the state as the constructor makes it; each device makes its own shards."""
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.specs)
        return jax.jit(self.init, out_shardings=shardings)()

    def forward(self, mesh, outputs: str = "all") -> Callable[..., jax.Array]:
        """Return the function (state, tokens [B, L]) -> output; "last" takes its last position."""

        def run(state, tokens):
            tokens = jax.lax.with_sharding_constraint(tokens, NamedSharding(mesh, self._input_spec))
            logits = self._run(state, tokens, mesh)
            return logits[:, -1] if outputs == "last" else logits

        return run

    def reference(self, state: Any, tokens: jax.Array) -> jax.Array:
        """Return the module's output on one device.

        A mesh of one device has the strategy's axes, for modules that name them.
        """
        one = MeshSpec(dict.fromkeys(self.strategy.mesh_axes, 1))
        return self._run(state, tokens, one.abstract())

    def _run(self, state: Any, tokens: jax.Array, mesh, more_rules: tuple = ()) -> jax.Array:
        abstract = mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh
        rules = tuple((name, mesh_entry(axes)) for name, axes in self.rules.table().items())
        with (
            jax.sharding.use_abstract_mesh(abstract),
            nn.logical_axis_rules((*rules, *more_rules)),
        ):
            output = self.module.run(state, tokens)
        if not hasattr(output, "dtype"):
            raise ValueError(
                f"Program: {self.name} returned a {type(output).__name__}; expected one array "
                "[B, L, ...]. Wrap it in a module that returns its logits."
            )
        return output

    @functools.cached_property
    def _unknown_names(self) -> frozenset[str]:
        if self.module.kind != "Linen":
            return frozenset()
        names = {name for leaf in self.module.leaves for name in leaf.names or () if name}
        return frozenset(names - {*self.strategy.rules.table(), *self.strategy.mesh_axes})

    @property
    def _input_spec(self) -> PartitionSpec:
        table = self.strategy.rules.table()
        return PartitionSpec(mesh_entry(table["act_batch"]), mesh_entry(table["act_seq"]))
