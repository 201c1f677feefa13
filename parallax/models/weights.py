"""How weights are drawn, and stored."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from parallax.compression import parse_format
from parallax.models.packed_weight import PackedWeight, Stored


def bias(shape, names, dtype: str) -> nnx.Param:
    """Zeros that carry their logical axes."""
    return nnx.Param(jnp.zeros(shape, dtype), out_sharding=names)


def weight(
    rngs: nnx.Rngs, shape, names, fan_in: int, dtype: str, *, form: str | None = None,
    inputs: tuple[int, ...] = (0,),
) -> Any:  # fmt: skip
    """A normal matrix of standard deviation fan_in ** -0.5 that carries its logical axes.

    Args:
      form: name of the format it is stored in; None is as it is, an nnx.Param.
      inputs: dims that its product sums over.
    """
    wide = jnp.float64 if dtype == "float64" else jnp.float32
    value = jax.random.normal(rngs.params(), shape, wide) * jnp.asarray(fan_in**-0.5, wide)
    value = value.astype(dtype)
    if form is None:
        return nnx.Param(value, out_sharding=names)
    return PackedWeight(value, names, parse_format(form), inputs, dtype)


def cast(state: nnx.State, dtype: str) -> nnx.State:
    """Parameters in a dtype; what is stored compressed stays as it is."""
    return nnx.map_state(
        lambda _, w: w if isinstance(w, Stored) else w.replace(w[...].astype(dtype)), state
    )
