"""Routers: gates, fixed choices, statistics that add up, and the load-balancing loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from parallax.parallel.experts import (
    RouterStats,
    RoutingRule,
    fixed_expert_ids,
    load_balancing_loss,
    route,
    router_stats,
)
from tests.parallel.experts.textbook import draw, mesh_of

TOKENS, EXPERTS = 64, 8
RULES = {
    "sigmoid, groups by their two largest": RoutingRule(
        "sigmoid", scale=2.5, groups=4, groups_per_token=2, group_score="two_largest"
    ),
    "softmax, groups by their largest": RoutingRule(
        normalize=False, scale=16.0, groups=2, groups_per_token=1
    ),
    "sigmoid of all": RoutingRule("sigmoid"),
}


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_one_choice_has_its_probability_and_several_share_one():
    logits = draw(TOKENS, EXPERTS)
    p = softmax(np.asarray(logits))
    best = np.argsort(-p, axis=1)
    one, two = route(logits, 1), route(logits, 2)
    np.testing.assert_array_equal(one.ids_Tk, best[:, :1])
    np.testing.assert_array_equal(two.ids_Tk, best[:, :2])
    np.testing.assert_allclose(one.gates_Tk, np.take_along_axis(p, best[:, :1], 1), rtol=1e-14)
    pair = np.take_along_axis(p, best[:, :2], 1)
    np.testing.assert_allclose(two.gates_Tk, pair / pair.sum(1, keepdims=True), rtol=1e-14)
    assert one.ids_Tk.dtype == jnp.int32
    assert route(logits.astype(jnp.float16), 2).gates_Tk.dtype == jnp.float32


def test_replayed_choices_take_the_routers_gates():
    logits = draw(TOKENS, EXPERTS)
    ids = fixed_expert_ids("uniform", TOKENS, EXPERTS, 2)
    routing = jax.jit(lambda a: route(a, 2, jnp.asarray(ids)))(logits)
    np.testing.assert_array_equal(routing.ids_Tk, ids)
    pair = np.take_along_axis(softmax(np.asarray(logits)), ids, 1)
    np.testing.assert_allclose(routing.gates_Tk, pair / pair.sum(1, keepdims=True), rtol=1e-14)
    slope = jax.grad(lambda a: (route(a, 2, jnp.asarray(ids)).gates_Tk[:, 0]).sum())(logits)
    assert jnp.abs(slope).max() > 1e-3
    with pytest.raises(ValueError, match="fixed routing must be"):
        route(logits, 1, jnp.asarray(ids))
    with pytest.raises(ValueError, match="9 choices per token of 8 experts"):
        route(logits, 9)


def chosen(p, bias, rule, k):
    """The choices of one token, and the least gap that decides them, by loops over groups."""
    rank, gaps = p + bias, [np.inf]
    each = len(p) // rule.groups
    groups = [list(range(g * each, (g + 1) * each)) for g in range(rule.groups)]
    best = {"largest": 1, "two_largest": 2}[rule.group_score]
    score = [sum(sorted(rank[e] for e in group)[-best:]) for group in groups]
    order = sorted(range(rule.groups), key=lambda g: (-score[g], g))
    used, rest = order[: rule.groups_per_token], order[rule.groups_per_token :]
    if rest:
        gaps.append(score[used[-1]] - score[rest[0]])
    allowed = sorted((e for g in used for e in groups[g]), key=lambda e: (-rank[e], e))
    if len(allowed) > k:
        gaps.append(rank[allowed[k - 1]] - rank[allowed[k]])
    return allowed[:k], min(gaps)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_choices_and_weights_by_loops(name, k):
    rule, logits, bias = RULES[name], draw(TOKENS, EXPERTS), draw(EXPERTS, seed=3) * 0.3
    exact, routed = np.asarray(logits), route(logits, k, rule=rule, choice_bias_E=bias)
    p = 1 / (1 + np.exp(-exact)) if rule.scores == "sigmoid" else softmax(exact)
    gaps, unbiased = [], 0
    for t in range(TOKENS):
        ids, gap = chosen(p[t], np.asarray(bias), rule, k)
        gaps.append(gap)
        unbiased += ids != chosen(p[t], 0 * p[t], rule, k)[0]
        assert list(routed.ids_Tk[t]) == ids
        weights = p[t][ids]  # without the bias
        weights = weights / weights.sum() if rule.normalize and k > 1 else weights
        np.testing.assert_allclose(routed.gates_Tk[t], rule.scale * weights, rtol=1e-13)
    assert unbiased > 5
    stats = router_stats(logits, routed, rule=rule, choice_bias_E=bias)
    assert stats.smallest_margin == pytest.approx(min(gaps), rel=1e-9)
    assert stats.flips == 0
    assert stats.probability_E.sum() == pytest.approx(TOKENS, rel=1e-12)
    assert router_stats(logits, routed, rule=rule).flips > 0


def test_equals_go_to_the_first_and_no_gradient_reaches_the_bias_of_the_choice():
    rule = RULES["sigmoid, groups by their two largest"]
    routed = route(jnp.zeros((2, EXPERTS)), 3, rule=rule)
    np.testing.assert_array_equal(routed.ids_Tk, [[0, 1, 2]] * 2)
    logits, bias = draw(TOKENS, EXPERTS), draw(EXPERTS, seed=3)

    def first(logits, bias):
        return route(logits, 3, rule=rule, choice_bias_E=bias).gates_Tk[:, 0].sum()

    of_logits, of_bias = jax.grad(first, argnums=(0, 1))(logits, bias)
    assert jnp.abs(of_logits).max() > 1e-3
    assert not of_bias.any()
    low = jnp.full((1, EXPERTS), -1e4, jnp.float32)
    assert not route(low, 3, rule=rule).gates_Tk.any()  # 0 / 0 is no weight
    with pytest.raises(ValueError, match="3 choices of 8 experts in 4 groups, .* uses 1"):
        route(logits, 3, rule=RoutingRule(groups=4))


def test_stats_by_hand():
    logits = draw(TOKENS, EXPERTS)
    p = softmax(np.asarray(logits))
    ranked = np.sort(p, axis=1)[:, ::-1]
    ids = np.argsort(-p, axis=1)[:, :2].astype(np.int32)
    ids[:5, 1] = np.argsort(-p, axis=1)[:5, 2]  # five second choices that are the router's third
    stats = router_stats(logits, route(logits, 2, jnp.asarray(ids)), dropped=3)
    np.testing.assert_array_equal(stats.tokens_E, np.bincount(ids.reshape(-1), minlength=EXPERTS))
    np.testing.assert_allclose(stats.probability_E, p.sum(axis=0), rtol=1e-13)
    assert stats.smallest_margin == pytest.approx((ranked[:, 1] - ranked[:, 2]).min(), rel=1e-12)
    assert (stats.flips, stats.dropped) == (5, 3)
    assert router_stats(logits, route(logits, 2)).flips == 0
    assert router_stats(logits, route(logits, EXPERTS)).smallest_margin == np.inf


@pytest.mark.parametrize(
    ("axes", "microbatches"), [({"data": 4}, 2), ({"node": 2, "expert": 4}, 1)]
)
def test_any_split_adds_up_to_the_unsharded(axes, microbatches):
    logits = draw(TOKENS, EXPERTS)
    names = tuple(axes)
    ids = jnp.asarray(fixed_expert_ids("lognormal:0.7", TOKENS, EXPERTS, 2))

    def stats_of(logits, ids):
        return router_stats(logits, route(logits, 2, ids), dropped=1)

    def local(logits, ids):
        total = RouterStats.empty(EXPERTS, "float64")
        for piece in zip(*(jnp.split(a, microbatches) for a in (logits, ids)), strict=True):
            total = total.merge(stats_of(*piece))
        return total.over(names)

    split = jax.shard_map(
        local, mesh=mesh_of(axes), in_specs=(P(names), P(names)), out_specs=P(), check_vma=True
    )

    def loss(stats):
        return lambda logits: load_balancing_loss(stats(logits, ids), TOKENS, 2)

    found, whole = jax.jit(split)(logits, ids), stats_of(logits, ids)
    np.testing.assert_array_equal(found.tokens_E, whole.tokens_E)
    np.testing.assert_allclose(found.probability_E, whole.probability_E, rtol=1e-14)
    assert found.smallest_margin == whole.smallest_margin
    assert found.flips == whole.flips > 0
    assert int(found.dropped) == np.prod(list(axes.values())) * microbatches
    value, slope = jax.jit(jax.value_and_grad(loss(split)))(logits)
    expected, expected_slope = jax.jit(jax.value_and_grad(loss(stats_of)))(logits)
    assert value == pytest.approx(float(expected), rel=1e-14)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-12, atol=1e-17)


def test_load_balancing_loss_is_one_where_even_and_largest_where_one_has_all():
    ids = jnp.asarray(fixed_expert_ids("uniform", TOKENS, EXPERTS, 2))
    logits = jnp.zeros((TOKENS, EXPERTS))
    even = router_stats(logits, route(logits, 2, ids))
    assert load_balancing_loss(even, TOKENS, 2) == pytest.approx(1.0, rel=1e-14)
    logits = jnp.zeros((TOKENS, EXPERTS)).at[:, 3].set(50.0)
    one = router_stats(logits, route(logits, 1))
    assert load_balancing_loss(one, TOKENS, 1) == pytest.approx(EXPERTS, rel=1e-14)
