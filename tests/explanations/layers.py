"""Layers and training steps as users write them, without Parallax, shared by the programs here.

B batch, L sequence, D model width, H heads, K head width, F hidden width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from tests.explanations.case import array

constrain = lax.with_sharding_constraint
OPTIMIZER = optax.adamw(1e-4)


def norm(x, scale):
    """RMSNorm with its sum of squares in float32."""
    mean = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
    return x * lax.rsqrt(mean + 1e-6).astype(x.dtype) * scale


def attention(x_BLD, w):
    """Causal attention with fused q, k and v weights [3, D, H, K] and output weights [H, K, D]."""
    q, k, v = jnp.einsum("bld,cdhk->cblhk", x_BLD, w["qkv"])
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return jnp.einsum("blhk,hkd->bld", mixed, w["out"])


def mlp(x_BLD, w):
    """MLP with weights `up` [D, F] and `down` [F, D]."""
    return jax.nn.gelu(x_BLD @ w["up"]) @ w["down"]


def cross_entropy(logits_BLV, labels_BL):
    """Return the mean loss, computed in float32."""
    logits = logits_BLV.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels_BL).mean()


def layer_shapes(layers: int, D: int, F: int, H: int, dtype: Any = jnp.bfloat16) -> dict:
    """Return the abstract weights of a stack of layers."""
    return {
        "qkv": array(layers, 3, D, H, D // H, dtype=dtype),
        "out": array(layers, H, D // H, D, dtype=dtype),
        "up": array(layers, D, F, dtype=dtype),
        "down": array(layers, F, D, dtype=dtype),
        "norm1": array(layers, D, dtype=dtype),
        "norm2": array(layers, D, dtype=dtype),
    }


def train_step(loss: Callable) -> Callable:
    """Return a step of AdamW on (parameters, optimizer state, batch)."""

    def step(params, opt_state, batch):
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = OPTIMIZER.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return step


def moments(params: Any) -> Any:
    """Return the abstract optimizer state."""
    return jax.eval_shape(OPTIMIZER.init, params)


def moment_specs(params: Any, specs: Any) -> Any:
    """Return the specs of an optimizer state that is split as the parameters are."""
    return optax.tree.map_params(
        OPTIMIZER, lambda _, spec: spec, moments(params), specs, transform_non_params=lambda _: P()
    )


# FSDP: every weight is split over `data` and gathered where its layer uses it.
FSDP_LAYERS = {
    "qkv": P(None, None, "data"), "out": P(None, None, None, "data"), "up": P(None, "data"),
    "down": P(None, None, "data"), "norm1": P(), "norm2": P(),
}  # fmt: skip
FSDP = {"embed": P(None, "data"), "layers": FSDP_LAYERS, "head": P("data")}
# Tensor parallelism: heads, hidden units and the vocabulary are split over `model`.
TENSOR_LAYERS = {
    "qkv": P(None, None, None, "model"), "out": P(None, "model"), "up": P(None, None, "model"),
    "down": P(None, "model"), "norm1": P(), "norm2": P(),
}  # fmt: skip
TENSOR = {"embed": P("model"), "layers": TENSOR_LAYERS, "head": P(None, "model")}


def decoder(layers, D, F, H, V, dtype=jnp.bfloat16):
    """Return the abstract parameters of a decoder."""
    return {
        "embed": array(V, D, dtype=dtype),
        "layers": layer_shapes(layers, D, F, H, dtype),
        "head": array(D, V, dtype=dtype),
    }


def tokens(batch, length):
    """Return abstract tokens and labels."""
    return array(batch, length, dtype=jnp.int32), array(batch, length, dtype=jnp.int32)


def trained(params, specs, batch, mesh, state_specs=None, split: str | None = "data"):
    """Return arguments and options of a step with donated state and a batch split over `split`."""
    states = moment_specs(params, specs) if state_specs is None else state_specs
    args = (params, moments(params), batch)
    options = {
        "mesh": mesh, "in_specs": (specs, states, P(split)),
        "out_shardings": (specs, states, P()), "donate": (0, 1),
    }  # fmt: skip
    return args, options


def decoder_layer(x_BLD, w):
    """One layer on a batch split over `data`."""
    mixed_BLD = attention(norm(x_BLD, w["norm1"]), w)
    x_BLD = x_BLD + checkpoint_name(mixed_BLD, "mixed")
    x_BLD = x_BLD + mlp(norm(x_BLD, w["norm2"]), w)
    return constrain(x_BLD, P("data", None, None)), None


# Recomputes a layer but for the sum over `model` after attention, which would be sent again.
SAVE_SUM = jax.checkpoint_policies.save_only_these_names("mixed")
tensor_layer = jax.checkpoint(decoder_layer, policy=SAVE_SUM)


def decoder_loss(params, batch):
    """Return the loss of a decoder on a batch split over `data`; layers are recomputed."""
    inputs, labels = batch
    x_BLD = constrain(params["embed"][inputs], P("data", None, None))
    x_BLD, _ = lax.scan(jax.checkpoint(decoder_layer), x_BLD, params["layers"])
    return cross_entropy(x_BLD @ params["head"], labels)
