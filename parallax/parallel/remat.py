"""Rematerialisation: what a layer keeps for its backward pass, and what it computes again."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
from jax.ad_checkpoint import checkpoint_name

# What the backward pass of a layer recomputes: nothing; everything but the results of matrix
# products (so norms, activations, softmaxes, gathered weights); or the whole layer from its input,
# except attention's result.
Remat = Literal["none", "attention", "layer"]

# Earlier values, and what to use instead.
REPLACED_REMAT = {
    "microbatch": "it is no more: a training step keeps one microbatch at a time by itself. Use "
    "layer, or none with enough memory",
}

_ATTENTION, _PRODUCT = "attention_result", "product"


def check_remat(remat: str) -> None:
    """Raise ValueError for a choice that does not exist, or no longer."""
    if remat not in get_args(Remat):
        why = REPLACED_REMAT.get(remat, f"expected one of {', '.join(get_args(Remat))}")
        raise ValueError(f"remat {remat!r}: {why}.")


def attention_result(x: jax.Array) -> jax.Array:
    """Mark attention's result, which every choice keeps: to recompute it a ring would run again."""
    return checkpoint_name(x, _ATTENTION)


def product_result(x: jax.Array) -> jax.Array:
    """Mark the result of a layer's matrix product, summed over devices."""
    return checkpoint_name(x, _PRODUCT)


def rematerialised(layer: Callable, remat: Remat) -> Callable:
    """Return a layer whose backward pass recomputes what `remat` says."""
    if remat == "none":
        return layer
    kept = [_ATTENTION, *([_PRODUCT] if remat == "attention" else [])]
    policy = jax.checkpoint_policies.save_only_these_names(*kept)
    return jax.checkpoint(layer, prevent_cse=False, policy=policy)
