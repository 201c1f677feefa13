"""A Transformer's parameters under a strategy: how they are laid out, padded, tied and counted.

Nothing is materialised until `init`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallax.compression import Packed, check_shapes
from parallax.models.compressing import packed_weights
from parallax.models.config import ModelConfig
from parallax.models.transformer import Transformer, abstract_transformer
from parallax.parallel.split import Split
from parallax.parallel.stage_layers import layers_in_place, pad_layers, unpad_layers
from parallax.rules import Phase, check_divides
from parallax.strategy import Strategy

# Logical axes over which devices use a parameter for different work: its gradient is summed over
# them, once, at the end of the backward pass.
TOKENS = ("act_batch", "act_seq")
_DIFFERENT_WORK = {
    "tokens_VD": (*TOKENS, "act_norm_seq", "layers"),
    "positions_LD": (*TOKENS, "act_norm_seq", "layers"),
    "attention": (*TOKENS, "heads", "head_dim"),
    "mlp": (*TOKENS, "mlp", "expert"),
    # Biases of what is summed over devices are added once, after the sum.
    "out_bias_D": (*TOKENS, "act_norm_seq"),
    "down_bias_D": (*TOKENS, "act_norm_seq"),
    "attention_norm": (*TOKENS, "act_norm_seq"),
    "mlp_norm": (*TOKENS, "act_norm_seq"),
    "final_norm": (*TOKENS, "act_norm_seq"),
    "unembed_DV": TOKENS,
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
class ShardedParameters:
    """The parameters of a model as a strategy lays them out.

    Attributes:
      config: the model.
      strategy: how it is split.

    Raises:
      ValueError: sizes that the strategy cannot divide.
    """

    config: ModelConfig
    strategy: Strategy

    def __post_init__(self):
        _ = self.specs
        self._check_packed()

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
    def untied(self) -> Self:
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

    def abstract_state(self, mesh) -> nnx.State:
        """Shapes of the parameters with their shardings on `mesh`."""
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            self.shapes, self.specs,
        )  # fmt: skip

    def init(self, key: jax.Array, mesh) -> nnx.State:
        """Parameters, made in place: every device makes only its shards."""
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.specs)

        @functools.partial(jax.jit, out_shardings=shardings)
        def make(key):
            with nnx.use_eager_sharding(False):
                return self.place(nnx.split(Transformer(self.config, rngs=nnx.Rngs(params=key)))[1])

        return make(key)

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
            different = set(different_work(path, split)) - set(_axes(spec))
            axes = tuple(a for a in self.strategy.mesh_axes if a in different)
            if axes:
                sums[axes] = sums.get(axes, 0) + self._shard_size(w, spec)
        return sums

    def _shard_size(self, x, spec: PartitionSpec) -> int:
        return x.size // math.prod(self.strategy.mesh_axes[a] for a in _axes(spec))

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


def _change(state: nnx.State, layers: Callable, columns: Callable) -> nnx.State:
    """Parameters with stacked layers and the unembedding changed."""

    def change(path, w):
        how = layers if path[0] == "layers" else columns if path[0] == "unembed_DV" else None
        return w if how is None else w.replace(how(w[...]))

    return nnx.map_state(change, state)


def _fill_columns(w_DV: jax.Array, columns: int) -> jax.Array:
    missing = columns - w_DV.shape[1]
    return jnp.pad(w_DV, ((0, 0), (0, missing))) if missing else w_DV


def different_work(path, split: Split) -> tuple[str, ...]:
    """Mesh axes over which devices use the parameter at this path for different work."""
    name = next((name for name in reversed(path) if name in _DIFFERENT_WORK), None)
    if name is None:
        raise LookupError(
            f"parameter {'.'.join(map(str, path))}: over which devices its gradient is summed is "
            f"not known; known are {', '.join(_DIFFERENT_WORK)}. Add it to _DIFFERENT_WORK in "
            "parallax/programs/parameters.py."
        )
    return split.over(*_DIFFERENT_WORK[name])


def _axes(spec: PartitionSpec) -> tuple[str, ...]:
    """All mesh axes a PartitionSpec names."""
    return tuple(
        a for entry in spec if entry for a in ((entry,) if isinstance(entry, str) else entry)
    )
