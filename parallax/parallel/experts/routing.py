"""The routing of tokens to experts, their gates, and the statistics of routers.

Shapes: T tokens on this device, E experts, k choices per token.
"""
# ruff: noqa: N815 -- fields carry their shapes, as arrays do elsewhere.

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from parallax.kernels.ring_attention.reference import accumulator_dtype
from parallax.parallel.varying import vary_over


class Routing(NamedTuple):
    """The choices of each token.

    Attributes:
      ids_Tk: [T, k] int32, distinct experts per token; -1 is no choice.
      gates_Tk: [T, k], the factors of the experts' outputs; float32 or wider.
    """

    ids_Tk: jax.Array
    gates_Tk: jax.Array


def probabilities(logits_TE: Float[Array, "t e"]) -> Float[Array, "t e"]:
    """Return the softmax over the experts, in float32 or wider."""
    return jax.nn.softmax(logits_TE.astype(accumulator_dtype(logits_TE.dtype)), axis=-1)


def route(
    logits_TE: Float[Array, "t e"], top_k: int, fixed_ids_Tk: Int[Array, "t k"] | None = None
) -> Routing:
    """Choose the k most probable experts of each token, and their gates.

    Args:
      logits_TE: [T, E] of the router.
      top_k: choices per token. With one, the gate is the expert's probability; with more, the
        chosen experts' probabilities are divided by their sum.
      fixed_ids_Tk: [T, k] fixed routing instead of the router's own choices, distinct per token,
        -1 for none. Gates still come from the router's probabilities.

    Returns:
      A Routing, differentiable through its gates.

    Raises:
      ValueError: more choices than experts, or fixed routing of another shape.

    Reference: one choice as in Fedus et al., "Switch Transformers", 2021, section 2.1; several as
      in Jiang et al., "Mixtral of Experts", 2024, section 2.1.
    """
    tokens, experts = logits_TE.shape
    if not 1 <= top_k <= experts:
        raise ValueError(
            f"route: {top_k} choices per token of {experts} experts. Use 1 to {experts}."
        )
    p_TE = probabilities(logits_TE)
    if fixed_ids_Tk is None:
        ids_Tk = lax.top_k(lax.stop_gradient(p_TE), top_k)[1]
    else:
        if fixed_ids_Tk.shape != (tokens, top_k):
            raise ValueError(
                f"route: fixed routing must be [T, k] = {(tokens, top_k)}, got "
                f"{fixed_ids_Tk.shape}. Cut it as the tokens are cut."
            )
        ids_Tk = fixed_ids_Tk
    ids_Tk = ids_Tk.astype(jnp.int32)
    gates_Tk = jnp.take_along_axis(p_TE, jnp.maximum(ids_Tk, 0), axis=1)
    gates_Tk = jnp.where(ids_Tk >= 0, gates_Tk, 0)
    if top_k > 1:
        gates_Tk = gates_Tk / gates_Tk.sum(axis=1, keepdims=True)
    return Routing(ids_Tk, gates_Tk)


class RouterStats(NamedTuple):
    """The statistics of routers, which add up over microbatches, layers and devices.

    Attributes:
      tokens_E: [E] int32, choices of each expert (before any is dropped).
      probability_E: [E], sum over tokens of the router's probability; differentiable.
      smallest_margin: the least difference between the probabilities of a token's k-th choice and
        the next; infinite if k = E.
      flips: int32, choices that are not among the router's own k (fixed routing only).
      dropped: int32, choices dropped for lack of capacity.
    """

    tokens_E: jax.Array
    probability_E: jax.Array
    smallest_margin: jax.Array
    flips: jax.Array
    dropped: jax.Array

    def merge(self, other: "RouterStats") -> "RouterStats":
        """Return the statistics of both together."""
        return RouterStats(
            self.tokens_E + other.tokens_E,
            self.probability_E + other.probability_E,
            jnp.minimum(self.smallest_margin, other.smallest_margin),
            self.flips + other.flips,
            self.dropped + other.dropped,
        )

    def over(self, axes: Sequence[str]) -> "RouterStats":
        """Return the statistics of all devices on these mesh axes, the same on each.

        Args:
          axes: mesh axes that split the tokens, and no others: tokens that several devices count
            would be counted several times.

        Cost: an all-reduce of each field.
        """
        if not axes:
            return self
        axes = tuple(axes)
        varied = RouterStats(*(vary_over(x, axes) for x in self))
        sums = lax.psum(varied._replace(smallest_margin=None), axes)
        # The minimum over devices has no derivative rule, and needs none.
        margin = lax.pmin(lax.stop_gradient(varied.smallest_margin), axes)
        return sums._replace(smallest_margin=margin)

    @staticmethod
    def empty(num_experts: int, dtype: str = "float32") -> "RouterStats":
        """Return the statistics of no tokens, from which a merge starts."""
        zero = jnp.zeros((), jnp.int32)
        return RouterStats(
            jnp.zeros(num_experts, jnp.int32),
            jnp.zeros(num_experts, dtype),
            jnp.full((), jnp.inf, dtype),
            zero,
            zero,
        )


def router_stats(
    logits_TE: Float[Array, "t e"], routing: Routing, dropped: jax.Array | int = 0
) -> RouterStats:
    """Return the router statistics of this device's tokens.

    Args:
      logits_TE: [T, E] of the router.
      routing: the result of `route` for them.
      dropped: choices that an exchange with limited capacity dropped.
    """
    p_TE = probabilities(logits_TE)
    tokens, experts = p_TE.shape
    k = routing.ids_Tk.shape[1]
    ranked = lax.top_k(lax.stop_gradient(p_TE), min(k + 1, experts))
    margin = jnp.full(tokens, jnp.inf, p_TE.dtype)
    if k < experts:
        margin = ranked[0][:, k - 1] - ranked[0][:, k]
    own_Tk = ranked[1][:, :k].astype(jnp.int32)
    is_own_Tk = (routing.ids_Tk[:, :, None] == own_Tk[:, None, :]).any(axis=2)
    flipped_Tk = jnp.logical_and(routing.ids_Tk >= 0, jnp.logical_not(is_own_Tk))
    hits_TE = (routing.ids_Tk[:, :, None] == jnp.arange(experts, dtype=jnp.int32)[None, None]).sum(
        axis=1, dtype=jnp.int32
    )
    return RouterStats(
        tokens_E=hits_TE.sum(axis=0, dtype=jnp.int32),
        probability_E=p_TE.sum(axis=0),
        smallest_margin=margin.min(initial=jnp.inf),
        flips=flipped_Tk.sum(dtype=jnp.int32),
        dropped=jnp.asarray(dropped, jnp.int32),
    )


def load_balancing_loss(stats: RouterStats, tokens: int, top_k: int) -> jax.Array:
    """Return E sum_e f_e P_e: 1 for uniform routing, up to E if one expert has all tokens.

    Args:
      stats: statistics summed over the whole batch, so that no split of the tokens changes them.
      tokens: number of tokens, counted once per router that they pass.
      top_k: choices per token.

    Returns:
      A scalar in the probabilities' dtype; differentiable through P_e.

    Reference: Fedus et al., "Switch Transformers", 2021, equations 4 to 6.
    """
    p_E = stats.probability_E / tokens
    f_E = stats.tokens_E.astype(p_E.dtype) / (tokens * top_k)
    return p_E.shape[0] * (lax.stop_gradient(f_E) * p_E).sum()
