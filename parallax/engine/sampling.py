"""The choice of the next token: greedy, or sampled with temperature, top-k and top-p.

Shapes: B sequences, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class Sampling:
    """The rule by which a token is chosen from logits.

    Attributes:
      temperature: divides the logits; 0 takes the largest logit, the first of equals.
      top_k: samples only among this many largest logits; None is all.
      top_p: of these, keeps only the largest that together reach this probability; at least one.
      seed: seed of the draws. A token depends only on the seed, its sequence's number and its step,
        not on how the model is split or what else is in the batch.

    Raises:
      ValueError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self):
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(
                f"temperature must be 0 (greedy) or a positive number; got {self.temperature}."
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if not self.temperature and (self.top_k is not None or self.top_p is not None):
            raise ValueError(
                "top_k and top_p restrict what is drawn, but at temperature 0 nothing is drawn. "
                "Set a temperature, for example 1."
            )


def next_tokens(
    logits_BV: Float[Array, "b v"], sampling: Sampling, step: Int[Array, ""] | int
) -> Int[Array, "b"]:
    """Return the next token of each sequence, [B] int32.

    Args:
      logits_BV: logits of the last tokens, in any dtype.
      sampling: the rule.
      step: number of the new token, which the draw depends on.

    Cost: greedy reads the logits once; top_k and top_p sort them.
    """
    if not sampling.temperature:
        return logits_BV.argmax(-1).astype(jnp.int32)
    wide = jnp.promote_types(logits_BV.dtype, jnp.float32)
    logits_BV = logits_BV.astype(wide) / jnp.asarray(sampling.temperature, wide)
    if sampling.top_k is not None or sampling.top_p is not None:
        logits_BV = _most_likely(logits_BV, sampling)
    key = jax.random.fold_in(jax.random.key(sampling.seed), step)
    rows = jnp.arange(logits_BV.shape[0], dtype=jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    return jax.vmap(jax.random.categorical)(keys, logits_BV).astype(jnp.int32)


def same_on_all(sharding: NamedSharding) -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Return a replicated sharding, and the function that brings tokens to it from one device each.

    Devices that compute the same sequence may differ in the last bit of its logits, and so in its
    next token where two are nearly equal. Processes that stop at different tokens would hang.

    Args:
      sharding: the sharding of the tokens [B].

    Cost: one all-reduce of B integers over the whole mesh.
    """
    mesh, (spec,) = sharding.mesh, sharding.spec or (None,)
    splitting = (spec,) if isinstance(spec, str) else tuple(spec or ())
    copies = tuple(axis for axis in mesh.axis_names if axis not in splitting)

    def local(tokens_b):
        number = lax.axis_index(splitting) if splitting else 0
        rows = math.prod(mesh.shape[axis] for axis in splitting) * tokens_b.shape[0]
        whole_B = jnp.zeros(rows, tokens_b.dtype)
        whole_B = lax.dynamic_update_slice_in_dim(
            whole_B, tokens_b, number * tokens_b.shape[0], axis=0
        )
        if copies:
            whole_B = jnp.where(lax.axis_index(copies) == 0, whole_B, jnp.zeros_like(whole_B))
        return lax.psum(whole_B, mesh.axis_names)

    replicated = NamedSharding(mesh, PartitionSpec())
    return replicated, jax.shard_map(
        local, mesh=mesh, in_specs=(sharding.spec,), out_specs=PartitionSpec(), check_vma=True
    )


def _most_likely(logits_BV, sampling: Sampling):
    """Return the logits with -inf where top_k and top_p exclude; the first of equals stay."""
    order_BV = jnp.argsort(-logits_BV, axis=-1, stable=True)
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    rank_V = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)[None]
    kept_BV = rank_V < (sampling.top_k or logits_BV.shape[-1])
    if sampling.top_p is not None:
        chances_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, -jnp.inf), axis=-1)
        before_BV = jnp.cumsum(chances_BV, axis=-1) - chances_BV
        kept_BV = kept_BV & (before_BV < sampling.top_p)
    rows = jnp.arange(logits_BV.shape[0], dtype=jnp.int32)[:, None]
    kept_BV = jnp.zeros(logits_BV.shape, bool).at[rows, order_BV].set(kept_BV)
    return jnp.where(kept_BV, logits_BV, -jnp.inf)
