"""The MLP of a stacked layer as one kernel that reads each weight once, if one is available."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from parallax.kernels import dispatch
from parallax.kernels.cache_tiled_mlp import Matrix, cache_tiled_mlp, runs_kernel
from parallax.models.block import Mlp
from parallax.models.packed_weight import PackedWeight


def streamed_mlp(h: jax.Array, mlp: Mlp, stacked: nnx.State, layer) -> jax.Array | None:
    """Run all microbatches' rows through a layer's MLP, without its last bias.

    Args:
      h: [..., D], in the model's dtype.
      mlp: the MLP of any layer, for its formats.
      stacked: the state of all layers' MLPs.
      layer: index of the layer.

    Returns:
      [..., D] in float32: sums over this device's share of the MLP's width. None if the kernel
      does not support these weights, or is neither validated nor enabled (`Strategy.kernels`).
    """
    wanted = [_matrix(mlp, stacked, name) for name in ("up", "down", "gate")[: 2 + mlp.gated]]
    matrices = [matrix for matrix in wanted if matrix is not None]
    rows = h.reshape(math.prod(h.shape[:-1]), h.shape[-1])
    reason = None
    if len(matrices) < len(wanted):
        reason = "it has 16-bit and INT8 weights only"
    elif mlp.gated and mlp.gate != "silu":
        reason = f"its gate is SiLU, not {mlp.gate}"
    if reason is not None:
        dispatch.record_refusal("cache_tiled_mlp", "mosaic", reason)
        return None
    if not runs_kernel(rows, *matrices):
        return None
    up, down, *gate = matrices
    activation = "silu" if mlp.gated else "gelu"
    # Devices that share the width add the bias once, after the sum over devices.
    down = down._replace(bias=None)
    return cache_tiled_mlp(rows, up, down, *gate, layer=layer, activation=activation).reshape(
        h.shape
    )


def _matrix(mlp: Mlp, stacked: Any, name: str) -> Matrix | None:
    """Return a matrix as the kernel's operation takes it; None for an unsupported format."""
    name, letters = (f"{name}_FD", "D") if name == "down" else (f"{name}_DF", "F")
    bias = None
    if mlp.has_bias:
        bias = stacked[f"{name.split('_')[0]}_bias_{letters}"][...]
    weight, stored = getattr(mlp, name), stacked[name]
    if not isinstance(weight, PackedWeight):
        return Matrix(stored[...], None, bias)
    form = weight.form
    if form.sparse or form.activation_bits or form.bits == 4:
        return None
    if form.group is None:
        return Matrix(stored["values"][...], None, bias)
    return Matrix(stored["values"][...], stored["scales"][...].astype(jnp.float32), bias)
