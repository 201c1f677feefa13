"""The routing of tokens to experts, their gates, and the statistics of routers.

Shapes: T tokens on this device, E experts, k choices per token.
"""
# ruff: noqa: N815 -- fields carry their shapes, as arrays do elsewhere.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from parallax.kernels.ring_attention.reference import accumulator_dtype
from parallax.parallel.varying import vary_over

_LEAST_SUM = 1e-20  # added to a sum of sigmoids that gates are divided by


@dataclass(frozen=True)
class RoutingRule:
    """How experts are chosen from a router's logits, and weighted.

    Attributes:
      scores: a token's probabilities of experts: "softmax" over all, or "sigmoid" of each.
      normalize: the weights of a token's several choices are divided by their sum.
      scale: factor of all weights.
      groups: equal groups of consecutive experts, of which a token uses groups_per_token.
      groups_per_token: groups that a token may choose from.
      group_score: a group's rank is its "largest" probability, or the sum of its "two_largest".
    """

    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_per_token: int = 1
    group_score: Literal["largest", "two_largest"] = "largest"


class Routing(NamedTuple):
    """The choices of each token.

    Attributes:
      ids_Tk: [T, k] int32, distinct experts per token; -1 is no choice.
      gates_Tk: [T, k], the factors of the experts' outputs; float32 or wider.
    """

    ids_Tk: jax.Array
    gates_Tk: jax.Array


class _Decision(NamedTuple):
    """What decides a token's choices.

    Attributes:
      p_TE: probabilities, without any bias of the choice; differentiable.
      rank_TE: what experts are ranked by, -inf for those in other groups.
      margin_T: the difference between the ranks of the last chosen group and the next; None
        without groups.
    """

    p_TE: jax.Array
    rank_TE: jax.Array
    margin_T: jax.Array | None


def _decide(logits_TE: jax.Array, rule: RoutingRule, bias_E: jax.Array | None) -> _Decision:
    logits_TE = logits_TE.astype(accumulator_dtype(logits_TE.dtype))
    p_TE = (
        jax.nn.sigmoid(logits_TE)
        if rule.scores == "sigmoid"
        else jax.nn.softmax(logits_TE, axis=-1)
    )
    rank_TE = lax.stop_gradient(p_TE if bias_E is None else p_TE + bias_E.astype(p_TE.dtype)[None])
    if rule.groups_per_token == rule.groups:
        return _Decision(p_TE, rank_TE, None)
    members_TGn = rank_TE.reshape(len(rank_TE), rule.groups, -1)
    best = 2 if rule.group_score == "two_largest" else 1
    score_TG = lax.top_k(members_TGn, best)[0].sum(axis=-1)
    used = rule.groups_per_token
    ranked, groups_Tg = lax.top_k(score_TG, used + 1)
    is_used_TG = (
        groups_Tg[:, :used, None] == jnp.arange(rule.groups, dtype=jnp.int32)[None, None]
    ).any(axis=1)
    members_TGn = jnp.where(is_used_TG[:, :, None], members_TGn, -jnp.inf)
    return _Decision(
        p_TE, members_TGn.reshape(rank_TE.shape), ranked[:, used - 1] - ranked[:, used]
    )


def route(
    logits_TE: Float[Array, "t e"],
    top_k: int,
    fixed_ids_Tk: Int[Array, "t k"] | None = None,
    *,
    rule: RoutingRule = RoutingRule(),
    choice_bias_E: Float[Array, "e"] | None = None,
) -> Routing:
    """Choose the k experts of each token that rank highest, and their gates.

    Args:
      logits_TE: [T, E] of the router, a learned bias included.
      top_k: choices per token. With one, the gate is the expert's probability; with more, the
        chosen experts' probabilities are divided by their sum if the rule normalises. Both times
        the rule's scale.
      fixed_ids_Tk: [T, k] fixed routing instead of the router's own choices, distinct per token,
        -1 for none. Gates still come from the router's probabilities.
      rule: probabilities, groups, and weights.
      choice_bias_E: [E], added to probabilities for the choice of groups and experts only: gates
        do not have it, and no gradient reaches it.

    Returns:
      A Routing, differentiable through its gates. Of equals, the first is chosen.

    Raises:
      ValueError: more choices than experts, groups that do not divide them or hold too few, or
        fixed routing of another shape.

    Reference: one choice as in Fedus et al., "Switch Transformers", 2021, section 2.1; several as
      in Jiang et al., "Mixtral of Experts", 2024, section 2.1; sigmoids, groups and the bias of the
      choice as in DeepSeek-AI, "DeepSeek-V3", 2024, section 2.1.2.
    """
    tokens, experts = logits_TE.shape
    _check_choices(experts, top_k, rule)
    decision = _decide(logits_TE, rule, choice_bias_E)
    p_TE = decision.p_TE
    if fixed_ids_Tk is None:
        ids_Tk = lax.top_k(decision.rank_TE, top_k)[1]
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
    if top_k > 1 and rule.normalize:
        total_T1 = gates_Tk.sum(axis=1, keepdims=True)
        if rule.scores == "sigmoid":  # which may all be 0
            total_T1 = total_T1 + _LEAST_SUM
        gates_Tk = gates_Tk / total_T1
    return Routing(ids_Tk, gates_Tk if rule.scale == 1 else gates_Tk * rule.scale)


def _check_choices(experts: int, top_k: int, rule: RoutingRule) -> None:
    if not 1 <= top_k <= experts:
        raise ValueError(
            f"route: {top_k} choices per token of {experts} experts. Use 1 to {experts}."
        )
    per_group = experts // rule.groups
    if experts % rule.groups or rule.groups_per_token * per_group < top_k:
        raise ValueError(
            f"route: {top_k} choices of {experts} experts in {rule.groups} groups, of which a "
            f"token uses {rule.groups_per_token}. Use groups that divide the experts, and enough "
            "of them for all choices."
        )


class RouterStats(NamedTuple):
    """The statistics of routers, which add up over microbatches, layers and devices.

    Attributes:
      tokens_E: [E] int32, choices of each expert (before any is dropped).
      probability_E: [E], sum over tokens of the router's probability (sigmoids divided by their
        sum over experts); differentiable.
      smallest_margin: the least difference between what decides of a token's k-th choice and the
        next (its probability, and the bias of the choice), and of its last group and the next;
        infinite if there is no next.
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
    logits_TE: Float[Array, "t e"],
    routing: Routing,
    dropped: jax.Array | int = 0,
    *,
    rule: RoutingRule = RoutingRule(),
    choice_bias_E: Float[Array, "e"] | None = None,
) -> RouterStats:
    """Return the router statistics of this device's tokens.

    Args:
      logits_TE: [T, E] of the router.
      routing: the result of `route` for them.
      dropped: choices that an exchange with limited capacity dropped.
      rule, choice_bias_E: as `route` had them.
    """
    p_TE, rank_TE, of_groups_T = _decide(logits_TE, rule, choice_bias_E)
    tokens, experts = p_TE.shape
    k = routing.ids_Tk.shape[1]
    ranked = lax.top_k(rank_TE, min(k + 1, experts))
    margin_T = jnp.full(tokens, jnp.inf, p_TE.dtype)
    if k < experts:
        margin_T = ranked[0][:, k - 1] - ranked[0][:, k]
    if of_groups_T is not None:
        margin_T = jnp.minimum(margin_T, of_groups_T)
    own_Tk = ranked[1][:, :k].astype(jnp.int32)
    is_own_Tk = (routing.ids_Tk[:, :, None] == own_Tk[:, None, :]).any(axis=2)
    flipped_Tk = jnp.logical_and(routing.ids_Tk >= 0, jnp.logical_not(is_own_Tk))
    hits_TE = (routing.ids_Tk[:, :, None] == jnp.arange(experts, dtype=jnp.int32)[None, None]).sum(
        axis=1, dtype=jnp.int32
    )
    if rule.scores == "sigmoid":
        p_TE = p_TE / (p_TE.sum(axis=1, keepdims=True) + _LEAST_SUM)
    return RouterStats(
        tokens_E=hits_TE.sum(axis=0, dtype=jnp.int32),
        probability_E=p_TE.sum(axis=0),
        smallest_margin=margin_T.min(initial=jnp.inf),
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
