"""Rematerialisation: what a layer keeps for its backward pass, and what it computes again."""

from collections.abc import Callable
from typing import Literal

import jax
from jax.ad_checkpoint import checkpoint_name

# What the backward pass of a layer recomputes: nothing but gathered and cast weights; everything
# but the results of matrix products (so norms, activations, softmaxes); or the whole layer from its
# input, except attention's result.
Remat = Literal["none", "attention", "layer"]

_ATTENTION, _PRODUCT, _WEIGHT = "attention_result", "product", "weight"


def attention_result(x: jax.Array) -> jax.Array:
    """Mark attention's result, which every choice keeps: to recompute it a ring would run again."""
    return checkpoint_name(x, _ATTENTION)


def product_result(x: jax.Array) -> jax.Array:
    """Mark the result of a layer's matrix product, summed over devices."""
    return checkpoint_name(x, _PRODUCT)


def weight_in_use(w: jax.Array) -> jax.Array:
    """Mark a weight as a layer uses it, cast and gathered, which no choice keeps."""
    return checkpoint_name(w, _WEIGHT)


def rematerialised(layer: Callable, remat: Remat) -> Callable:
    """Return a layer whose backward pass recomputes what `remat` says."""
    policies = jax.checkpoint_policies
    policy = {
        "none": policies.save_anything_except_these_names(_WEIGHT),
        "attention": policies.save_only_these_names(_ATTENTION, _PRODUCT),
        "layer": policies.save_only_these_names(_ATTENTION),
    }[remat]
    return jax.checkpoint(layer, prevent_cse=False, policy=policy)
