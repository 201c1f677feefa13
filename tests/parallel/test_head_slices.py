"""Reductions of head slices: what each sends and computes, which one runs, the approximation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.lenses.reference import Plain
from parallax.meshes.cluster import cluster
from parallax.meshes.mesh import MeshSpec
from parallax.parallel.attention_part import AttentionShape
from parallax.parallel.attention_parts import Ring, Ulysses
from parallax.parallel.cheapest import link_bytes_per_s, seconds
from parallax.parallel.scoring import CAUSAL, Scoring
from tests.parallel.cases import (
    CASES,
    SLICES,
    Case,
    slices,
    with_gradients,
    worst,
)


def test_local_slices_are_heads_of_their_own_and_say_so():
    """The approximation: the textbook's attention of 16 narrow heads, and not of 4 wide ones."""
    case = Case(slices("local"), SLICES, kv_heads=4)

    def of_narrow_heads(case, ids):
        def narrow(q, k, v):
            cut = (x.reshape(*x.shape[:2], 16, 2) for x in (q, k, v))
            out = Plain().attend(*cut, scoring=CAUSAL, segment_ids=None)
            return out.reshape(q.shape)

        return functools.partial(with_gradients, narrow, case)

    assert worst(case, of_narrow_heads) < 1e-13
    assert worst(case) > 1e-2
    assert "each slice" in case.part.approximation
    assert Ulysses("seq", case.part).approximation == case.part.approximation
    assert {c.part.approximation for c in CASES.values()} == {""}
    assert case.part.transfers(case.shape, case.mesh, 1) == ()


GRID = {"head_group": 4, "head_slice": 4}
LONG = AttentionShape(1, 10_000, 4, 4, 512, 4)  # a group's share of 16 heads


def test_exchanging_slices_sends_a_39th_of_summing_scores():
    """4 x 4 devices, 10,000 tokens, no mask, one dtype: 512 / 20,000, by both accounts."""
    spec = P(None, None, "head_group", "head_slice")

    def sent(reduction):
        part = slices(reduction)
        (form,) = {sum(t.wire_bytes for t in part.transfers(LONG, GRID, 1))}
        mapped = jax.shard_map(
            lambda q, k, v: part.attend(q, k, v, scoring=Scoring(), segment_ids=None),
            mesh=MeshSpec(GRID).abstract(), in_specs=spec, out_specs=spec,
        )  # fmt: skip
        x = jax.ShapeDtypeStruct((1, 10_000, 16, 512), jnp.float32)
        ledger = jaxpr_ledger(jax.make_jaxpr(mapped)(x, x, x), GRID)
        assert ledger.total() == pytest.approx(form, rel=1e-12)
        return form

    assert sent("exchange") / sent("scores") == pytest.approx(512 / 20_000, rel=1e-12)
    assert sent("exchange") / sent("scores") <= 1 / 39


def test_auto_is_the_cheapest_that_can_run():
    auto = slices("auto")
    assert auto.resolve(LONG, GRID) == "exchange"
    short = dataclasses.replace(LONG, seq_len=32)
    assert auto.resolve(short, GRID) == "scores"
    # One head for four slices, the sequence split besides: whole heads do not go around.
    ring_inside, sizes = slices("auto", inner=Ring("seq")), {"seq": 4, "head_slice": 4}
    one = dataclasses.replace(LONG, heads=1, kv_heads=1, item_bytes=2)
    assert ring_inside.resolve(one, sizes) == "gather"
    assert slices("scores").resolve(LONG, GRID) == "scores"
    for shape in (LONG, short):
        costs = {r: seconds(slices(r), shape, GRID, "h100_2x8")
                 for r in ("exchange", "scores", "gather")}  # fmt: skip
        assert auto.resolve(shape, GRID) == min(costs, key=lambda r: costs[r])


def test_rates_follow_where_an_axis_lies():
    (moved, *_) = slices("exchange").transfers(LONG, GRID, 1)
    where = cluster("h100_2x8")
    inside, between = where.gpu.nvlink_bytes_per_s, where.nic_bytes_per_s
    assert link_bytes_per_s(where, moved, GRID) == inside
    assert link_bytes_per_s(where, moved, {"head_slice": 4, "head_group": 4}) == between
    assert link_bytes_per_s(where, moved, {"head_slice": 16}) == between
    assert link_bytes_per_s(cluster("h100_nvl16"), moved, {"head_slice": 16}) == inside


def test_gathering_repeats_the_scores_product():
    flops = {r: slices(r).work(LONG, GRID).flops for r in ("exchange", "scores", "gather")}
    product = 2 * 10_000**2 * 512 * 4 / 4  # Q K^T of four heads, shared by four slices
    assert flops["exchange"] == flops["scores"] == 2 * product
    assert flops["gather"] == (4 + 1) * product
    shards = dataclasses.replace(LONG, heads=2, kv_heads=2, scoring=CAUSAL)
    assert 0.5 < slices("exchange").work(shards, GRID).flops / product < 0.55
