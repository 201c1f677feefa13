"""The parameters of a Transformer under a strategy: layout, padding, tying and sizes.

Nothing is materialised before `init`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallax.compression import Packed, check_shapes
from parallax.meshes.mesh import MeshSpec
from parallax.models.compressing import packed_weights
from parallax.models.config import ModelConfig
from parallax.models.transformer import Transformer, abstract_transformer
from parallax.models.weights import in_use
from parallax.parallel.split import Split
from parallax.parallel.stage_layers import layers_in_place, pad_layers, unpad_layers
from parallax.rules import Name, Phase, Rules, check_divides, names_of
from parallax.strategy import Strategy


def param_specs(
    state: nnx.State,
    strategy: Strategy,
    phase: Phase | Literal["optimizer"] = "prefill",
    root: str = "params",
) -> nnx.State:
    """Return the PartitionSpec of every parameter, from its logical axes.

    Args:
      state: parameters (arrays or shapes) that carry `out_sharding` names.
      strategy: the strategy whose rules are applied, and checked.
      phase: "train", "prefill", "decode", or "optimizer" for the optimizer's state.
      root: the start of a parameter's path in errors.

    Returns:
      The same tree with a PartitionSpec for every array.

    Raises:
      ValueError: a logical axis that the rules do not have, a mesh axis that splits two dims of an
        array, or a size that does not divide.
    """

    return _specs_of(state, strategy.name, strategy.rules, strategy.mesh_axes, phase, root)


def _specs_of(
    state: nnx.State, name: str, rules: Rules, mesh_axes: Mapping[str, int],
    phase: Phase | Literal["optimizer"] = "prefill", root: str = "params",
) -> nnx.State:  # fmt: skip
    def spec(path, variable):
        where = f"Strategy '{name}': {root}/{'/'.join(str(p) for p in path)}"
        names = getattr(variable, "out_sharding", None) or (None,) * variable.ndim
        shape = variable.shape
        return variable.replace(
            array_spec(shape, names, rules, mesh_axes, where=where, phase=phase)
        )

    return nnx.map_state(spec, state)


def array_spec(
    shape: Sequence[int],
    names: Sequence[Name],
    rules: Rules,
    mesh_axes: Mapping[str, int],
    *,
    where: str,
    phase: Phase | Literal["optimizer"] = "prefill",
) -> PartitionSpec:
    """Return the PartitionSpec of one array, from the logical axis of each dim.

    Raises:
      ValueError: as of `param_specs`, or another number of names than of dims.
    """
    if len(names) != len(shape):
        raise ValueError(
            f"{where}: shape {tuple(shape)} has {len(shape)} dims, but {len(names)} logical axes "
            f"{tuple(names)}. Name every dim; None is not split."
        )
    axes = rules.spec(names, phase, where=where)
    for dim, (name, split) in enumerate(zip(names, axes, strict=True)):
        said = ", ".join(names_of(name)) or "None"
        check_divides(shape[dim], split, mesh_axes, where=f"{where} dim {dim}", name=said)
    return PartitionSpec(*(mesh_entry(a) for a in axes))


def mesh_entry(axes: tuple[str, ...]):
    """Return the mesh axes of one dim as an entry of a PartitionSpec."""
    return None if not axes else axes[0] if len(axes) == 1 else axes


@dataclass(frozen=True)
class ShardedParameters:
    """The parameters of a model as a strategy shards them.

    Attributes:
      config: the model.
      strategy: how the model is split; key/value heads that are fewer than its devices are
        replicated (`Strategy.for_heads`).

    Raises:
      ValueError: sizes that the strategy cannot divide.
    """

    config: ModelConfig
    strategy: Strategy

    def __post_init__(self):
        fitted = self.strategy.for_heads(self.config.num_heads, self.config.num_kv_heads)
        object.__setattr__(self, "strategy", fitted)
        _ = self.specs
        self._check_packed()

    @functools.cached_property
    def groups(self) -> tuple[int, ...]:
        """The number of layers of each stage."""
        return self.strategy.layer_groups(self.config.stacked_layers, len(self.config.kinds))

    @property
    def kv_copies(self) -> int:
        """The number of devices that compute and keep the same key/value head."""
        split = self.strategy.split()
        devices = split.count("heads") if split.over("heads") != split.over("kv_heads") else 1
        return max(1, devices // self.config.num_kv_heads)

    @property
    def chunks(self) -> int:
        """The number of chunks of layers of each stage."""
        return self.strategy.layers.virtual_stages

    @functools.cached_property
    def shapes(self) -> nnx.State:
        """The global shapes of the sharded parameters (see `place`)."""
        return _shapes(self.config, self.groups, self.chunks, self.columns)

    @functools.cached_property
    def specs(self) -> nnx.State:
        """The PartitionSpec of every parameter."""
        strategy = self.strategy
        return _specs(
            self.config,
            strategy.name,
            strategy.rules,
            strategy.mesh,
            self.groups,
            self.chunks,
            self.columns,
        )

    @functools.cached_property
    def optimizer_specs(self) -> nnx.State:
        """The PartitionSpec of every parameter's gradient and optimizer state."""
        return param_specs(self.shapes, self.strategy, "optimizer")

    def entered(self, state: nnx.State, split: Split) -> tuple[nnx.State, Split]:
        """Return local shards as model code takes them, and its view of the split.

        Weights that a strategy gathers once a step are gathered here, in the model's dtype.
        """
        if self.strategy.gather == "layer" or not split.over("embed"):
            return state, split
        whole = split.replace(axes={**split.axes, "embed": ()})
        return in_use(state, self.config.dtype, split), whole

    def shard(self, state: nnx.State) -> nnx.State:
        """Return a model's parameters padded for sharding.

        Shorter stages are padded with layers of zeros, and a vocabulary that its devices do not
        divide with columns of zeros.
        """
        return _padded(state, self.groups, self.chunks, self.columns)

    def unshard(self, state: nnx.State) -> nnx.State:
        """Return the model's own parameters, or gradients, without padding: inverse of `shard`."""
        layers = functools.partial(unpad_layers, groups=self.groups, chunks=self.chunks)
        return _change(state, layers, lambda w: w[:, : self.config.vocab_size])

    def zero_padding(self, state: nnx.State) -> nnx.State:
        """Return padded parameters or gradients with zeros in the padding layers.

        A bias of a padding layer has a gradient, which must not change it.
        """
        real = layers_in_place(self.groups, self.chunks) >= 0
        if real.all():
            return state

        def mask(w):
            rows = jnp.asarray(real).reshape(-1, *(1,) * (w.ndim - 1))
            return jnp.where(rows, w, jnp.zeros_like(w))

        return _change(state, mask, lambda w: w)

    @property
    def columns(self) -> int:
        """The number of columns of the unembedding, padding included."""
        shards = self.strategy.split().count("vocab")
        return -(-self.config.vocab_size // shards) * shards

    @functools.cached_property
    def untied(self) -> Self:
        """The same model with an unembedding of its own, as the `shard_map` runs it."""
        if not self.config.tie_embeddings:
            return self
        return dataclasses.replace(self, config=self.config.replace(tie_embeddings=False))

    def untie(self, state: nnx.State, mesh) -> nnx.State:
        """Return the parameters of `untied`: a tied table is transposed into an unembedding.

        Cost: for a tied model, the collectives that XLA chooses to transpose the table from shares
          of the width to shares of the vocabulary; `jax.grad` adds up the gradients of both uses.
        """
        if not self.config.tie_embeddings:
            return state
        # Padded while rows are whole, so that every device sends an equal share.
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

    def abstract_state(self, mesh) -> nnx.State:
        """Return the shapes of the parameters with their shardings on `mesh`."""
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            self.shapes, self.specs,
        )  # fmt: skip

    def init(self, key: jax.Array, mesh) -> nnx.State:
        """Initialise the parameters in place: every device makes only its own shards."""
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.specs)

        @functools.partial(jax.jit, out_shardings=shardings)
        def make(key):
            with nnx.use_eager_sharding(False):
                return self.shard(nnx.split(Transformer(self.config, rngs=nnx.Rngs(params=key)))[1])

        return make(key)

    def shard_bytes(self) -> nnx.State:
        """Return the bytes of every parameter's shard on one device, as stored."""
        return jax.tree.map(
            lambda x, spec: self._shard_size(x, spec) * x.dtype.itemsize, self.shapes, self.specs
        )

    def _shard_size(self, x, spec: PartitionSpec) -> int:
        return x.size // math.prod(self.strategy.mesh_axes[a] for a in _axes(spec))

    def _check_packed(self) -> None:
        """Raise ValueError unless a device can decompress its shard of each weight on its own."""
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


def _padded(state: nnx.State, groups: tuple[int, ...], chunks: int, columns: int) -> nnx.State:
    layers = functools.partial(pad_layers, groups=groups, chunks=chunks)
    return _change(state, layers, lambda w: _pad_columns(w, columns))


# A search makes thousands of models that differ in their strategies alone, and strategies that
# differ in their schedules.
@functools.lru_cache(maxsize=64)
def _shapes(
    config: ModelConfig, groups: tuple[int, ...], chunks: int, columns: int
) -> nnx.State:  # fmt: skip
    pad = functools.partial(_padded, groups=groups, chunks=chunks, columns=columns)
    return jax.eval_shape(pad, abstract_transformer(config)[1])


@functools.lru_cache(maxsize=256)
def _specs(
    config: ModelConfig, name: str, rules: Rules, mesh: MeshSpec, groups: tuple[int, ...],
    chunks: int, columns: int,
) -> nnx.State:  # fmt: skip
    return _specs_of(_shapes(config, groups, chunks, columns), name, rules, dict(mesh.axes))


def _change(state: nnx.State, layers: Callable, columns: Callable) -> nnx.State:
    """Apply one function to each stacked layer array and another to the unembedding."""

    def change(path, w):
        how = layers if path[0] == "layers" else columns if path[0] == "unembed_DV" else None
        return w if how is None else w.replace(how(w[...]))

    return nnx.map_state(change, state)


def _pad_columns(w_DV: jax.Array, columns: int) -> jax.Array:
    missing = columns - w_DV.shape[1]
    return jnp.pad(w_DV, ((0, 0), (0, missing))) if missing else w_DV


def _axes(spec: PartitionSpec) -> tuple[str, ...]:
    """Return all mesh axes that a PartitionSpec names."""
    return tuple(
        a for entry in spec if entry for a in ((entry,) if isinstance(entry, str) else entry)
    )
