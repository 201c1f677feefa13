"""The gates of gated MLPs: how two products of one input become the hidden activations."""

import jax
import jax.numpy as jnp

_SIGMOID_SCALE = 1.702  # x sigmoid(1.702 x) approximates GELU


def gated(up: jax.Array, gate: jax.Array, kind: str, limit: float) -> jax.Array:
    """Return the hidden activations of a gated MLP, in the shape and dtype of its products.

    Args:
      up, gate: the two products, of one shape, biases included.
      kind: "silu": up silu(gate); "gelu": up gelu(gate) by tanh; "clamped": (u + 1) g
        sigmoid(1.702 g) of u = up clamped at both sides and g = gate clamped from above.
      limit: where "clamped" clamps; others have none.

    Raises:
      ValueError: another kind.

    Reference: Shazeer, "GLU Variants Improve Transformer", 2020; for "clamped": OpenAI, "gpt-oss
      model card", 2025.
    """
    if kind == "silu":
        return up * jax.nn.silu(gate)
    if kind == "gelu":
        return up * jax.nn.gelu(gate)
    if kind == "clamped":
        gate = jnp.minimum(gate, limit)
        up = jnp.clip(up, -limit, limit)
        return (up + 1) * (gate * jax.nn.sigmoid(_SIGMOID_SCALE * gate))
    raise ValueError(f"gated: expected silu, gelu or clamped, got {kind!r}. Use one of these.")
