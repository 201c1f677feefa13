"""The initialisation and storage of weights."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from parallax.compression import parse_format
from parallax.models.config import PARTS, ModelConfig
from parallax.models.packed_weight import PackedWeight, Stored
from parallax.parallel.split import Split
from parallax.rules import embed_axes, embed_dim


class WideParam(nnx.Param):
    """A parameter that is stored and used in float32 (float64 in a float64 model)."""


def bias(shape, names, dtype: str, kind: type[nnx.Param] = nnx.Param) -> nnx.Param:
    """Return a bias of zeros that carries its logical axes."""
    return kind(jnp.zeros(shape, dtype), out_sharding=names)


def weight(
    config: ModelConfig, rngs: nnx.Rngs, shape, names, fan_in: int, *,
    inputs: tuple[int, ...] = (0,), part: str | None = None,
) -> Any:  # fmt: skip
    """Return a normal matrix of standard deviation fan_in ** -0.5 with its metadata.

    It carries the axes, inputs and part that `Parameter` lists.

    Args:
      config: the model.
      rngs: a stream named "params".
      shape, names: sizes of its dims, and their logical axes.
      fan_in: the number of inputs that an output sums over.
      inputs: dims that its product sums over; () for a table.
      part: one of PARTS: the weight is a PackedWeight in this part's format of
        `config.compression`, if that is set; None is always an nnx.Param.
    """
    wide = jnp.float64 if config.dtype == "float64" else jnp.float32
    value = jax.random.normal(rngs.params(), shape, wide) * jnp.asarray(fan_in**-0.5, wide)
    value = value.astype(config.dtype)
    if part is None or config.compression is None:
        return nnx.Param(value, out_sharding=names, inputs=inputs, part=part)
    form = parse_format(config.compression[PARTS.index(part)])
    return PackedWeight(value, names, form, inputs, config.dtype)


def cast(state: nnx.State, dtype: str) -> nnx.State:
    """Cast parameters to a dtype, wide ones to at least float32, and compressed ones not at all."""
    wide = "float64" if dtype == "float64" else "float32"

    def one(w):
        if isinstance(w, Stored):
            return w
        return w.replace(w[...].astype(wide if isinstance(w, WideParam) else dtype))

    return nnx.map_state(lambda _, w: one(w), state)


def gathered[M: nnx.Module](module: M, split: Split, x: jax.Array) -> M:
    """Return a module whose weights, sharded over `embed`, are gathered for activations `x`."""
    graph, state = nnx.split(module)
    return nnx.merge(graph, nnx.map_state(lambda _, w: gathered_weight(w, split, x=x), state))


def in_use(state: nnx.State, dtype: str, split: Split, *, stacked: bool = False) -> nnx.State:
    """Return parameters as a layer uses them: cast to a dtype, and gathered if they are sharded.

    Args:
      state: this device's shards.
      dtype: the model's.
      split: how the model is split.
      stacked: they were picked from a stack of layers, whose logical axis their names still have.
    """
    return nnx.map_state(lambda _, w: gathered_weight(w, split, stacked), cast(state, dtype))


def gathered_weight(w: Any, split: Split, stacked: bool = False, x: jax.Array | None = None) -> Any:
    """Return a parameter, gathered if it is sharded.

    Args:
      w, split, stacked: as in `in_use`.
      x: as in `Split.gather_weight`.
    """
    names = w.out_sharding[stacked:]
    axes, dim = embed_axes(names, split.axes), embed_dim(names)
    return w.replace(split.gather_weight(w[...], axes, dim, x))
