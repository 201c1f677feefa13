"""Every strategy computes the unsharded model: logits and gradients on 16 devices."""

import dataclasses

import jax.numpy as jnp
import pytest
from jax import lax

from parallax.lenses.text import read_text
from parallax.lenses.tolerance import FLOAT64_LIMIT, FLOORS, judge
from parallax.lenses.verifying import verify_transformer
from parallax.models import tiled
from parallax.parallel import head_exchange, pipeline_stages
from parallax.parallel.pairs import Pairs, _where
from parallax.parallel.ring import OWN
from parallax.parallel.split import Split
from parallax.strategies import expert_parallel, ring_sequence, tensor_pipeline, two_level
from tests.selection import in_turns, together
from tests.strategies.cases import (
    EXPERTS,
    GQA_FULL,
    HYBRIDS,
    SMALL,
    STRATEGIES,
    TILE,
    UNEQUAL,
    UNEQUAL_STAGES,
    VARIANTS,
    WITH_EXPERTS,
    workload,
)

pytestmark = pytest.mark.slow

TEXT = read_text(None, 16 * 80)[0]


def verify(config, strategies, dtypes=("float64",), packed=False):
    cases = [(s, workload(s, packed)) for s in strategies]
    return verify_transformer(config, cases, TEXT, "text", dtypes)


def check(results):
    for result in results:
        assert 0.5 < result.logit_rms < 2
        for row in result.rows:
            assert row.passed, row


# They differ from "two_level" in the attention part alone, which tests/parallel has with gradients.
ELSEWHERE = ("scores", "gather")
ALONE = {n: s for n, s in (STRATEGIES | VARIANTS).items() if n not in ELSEWHERE}


def test_all_strategies_causal():
    check(verify(SMALL, ALONE.values()))


@pytest.mark.full
def test_strategies_whose_parts_are_tested_elsewhere():
    check(verify(SMALL, [VARIANTS[name] for name in ELSEWHERE]))


# Two key/value heads on eight tensor devices: each device computes both and keeps its own.
GROUPED = STRATEGIES | {name: VARIANTS[name] for name in ("double_ring", "ulysses")}


@pytest.mark.exhaustive
@together(GROUPED, "tensor_pipeline", "two_level")
def test_grouped_queries_full_attention_packed(chosen):
    check(verify(GQA_FULL, chosen, packed=True))


@pytest.mark.exhaustive
@together(HYBRIDS, "two_level x ring", "ulysses x ring")
def test_hybrids_with_normed_queries_and_keys(chosen):
    check(verify(SMALL.replace(qk_norm=True), chosen, packed=True))


OPTIONS = {
    "norms": tensor_pipeline(4, 2, sequence_parallel_norms=True),
    "wide sums": tensor_pipeline(4, 1, reduce_dtype="float64"),
    "natural": ring_sequence(8, order="natural"),
}


@pytest.mark.exhaustive
@together(OPTIONS, "wide sums", "natural")
def test_options(chosen):
    check(verify(SMALL.replace(num_kv_heads=4), chosen, packed=True))


@pytest.mark.exhaustive
@together(UNEQUAL_STAGES, "chosen")
def test_stages_of_unequal_depth(chosen):
    check(verify(UNEQUAL, chosen))


@together(WITH_EXPERTS, "exchange", "by node")
def test_experts_two_of_sixteen(chosen):
    results = verify(EXPERTS, chosen)
    check(results)
    for result in results:
        assert result.router is not None
        assert result.router.dropped == 0
        assert result.router.smallest_margin > 1e-9  # no near-tie that rounding could flip
        assert result.router.load_max_over_mean > 1


@pytest.mark.exhaustive
def test_one_expert_a_token_gated():
    one = EXPERTS.replace(experts_per_token=1, num_experts=8, mlp="gated", num_kv_heads=4)
    strategies = [
        tensor_pipeline(4, 2, experts="colocated"),
        expert_parallel(4, nodes=2, tile=TILE, exchange="ragged"),
    ]
    check(verify(one, strategies, packed=True))


@pytest.mark.full
def test_lower_precision_replays_choices_and_counts_flips():
    strategies = [WITH_EXPERTS["exchange"]]
    results = verify(EXPERTS.replace(dtype="bfloat16"), strategies, dtypes=("bfloat16",))
    check(results)
    for result in results:
        assert result.router is not None
        assert 0 < result.router.flips["bfloat16"] < 0.05


def test_what_a_capacity_drops_is_said_and_measured():
    (result,) = verify(EXPERTS, [expert_parallel(16, tile=TILE, capacity_factor=1.0)])
    assert "drop" in result.approximation
    assert result.router is not None
    assert 0 < result.router.dropped < 1
    assert result.rows[0].logits_error > 1e-3


def test_slices_as_heads_of_their_own_are_another_model():
    (result,) = verify(SMALL, [two_level(4, 4, reduction="local")])
    assert "slice" in result.approximation
    assert result.rows[0].logits_error > 1e-2


@together(STRATEGIES, "ring_sequence")
def test_lower_precision_by_the_table(chosen):
    check(verify(SMALL.replace(dtype="bfloat16"), chosen, dtypes=("bfloat16",)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_precisions_by_the_table(dtype):
    check(verify(SMALL.replace(dtype=dtype), STRATEGIES.values(), dtypes=(dtype,)))


@pytest.mark.exhaustive
def test_slabs_by_the_table():
    check(verify(SMALL.replace(dtype="float16"), [VARIANTS["tiled stages"]], ("float16",)))


def drop_a_hop(patch):
    exact = Pairs.visit

    def visit(self, source, *rest, finish=None):
        new = exact(self, source, *rest, finish=finish)
        return new if source is OWN or finish else _where(source == 3, rest[-1], new)

    patch.setattr(Pairs, "visit", visit)
    return "ring_sequence"


def drop_a_tensor_rank(patch):
    exact = Split.contract

    def contract(self, x, w, spec, *, over):
        if self.over("mlp"):
            x = x * (lax.axis_index(self.over("mlp")) != 3).astype(x.dtype)
        return exact(self, x, w, spec, over=over)

    patch.setattr(Split, "contract", contract)
    return "tensor_pipeline"


def drop_a_handoff(patch):
    patch.setattr(pipeline_stages, "shard_width", lambda x, axes: jnp.zeros_like(
        x[..., : x.shape[-1] // 8]) + 0 * lax.axis_index("tensor").astype(x.dtype))  # fmt: skip
    return "tensor_pipeline"


def drop_a_head_slice(patch):
    exact = head_exchange.to_heads

    def to_heads(x, axis, joined):
        return exact(x * (lax.axis_index(axis) != 3).astype(x.dtype), axis, joined)

    patch.setattr(head_exchange, "to_heads", to_heads)
    return "two_level"


def drop_a_node(patch):
    drop_a_hop(patch)
    return "double_ring"


def drop_a_tile(patch):
    exact = tiled._tile_of

    def tile_of(w, n, tile, count, dim):
        found = exact(w, n, tile, count, dim)
        return found.replace(found[...] * (jnp.asarray(tile) != count - 1).astype(found.dtype))

    patch.setattr(tiled, "_tile_of", tile_of)
    return "tiled stages"


MUTATIONS = [drop_a_hop, drop_a_tensor_rank, drop_a_handoff, drop_a_head_slice, drop_a_node,
             drop_a_tile]  # fmt: skip


@pytest.mark.parametrize("mutate", in_turns(MUTATIONS, 3, pytest.mark.exhaustive),
                         ids=lambda m: m.__name__)  # fmt: skip
def test_mutations_are_seen(mutate, monkeypatch):
    name = mutate(monkeypatch)
    (result,) = verify(SMALL, [(STRATEGIES | VARIANTS)[name]])
    assert result.rows[0].logits_error > 1e-2
    assert not result.exact


def test_the_table_judges():
    assert not judge("float64", 2 * FLOAT64_LIMIT, 0.0).passed
    assert not judge("float64", 0.0, 2 * FLOAT64_LIMIT).passed
    assert judge("bfloat16", 0.9 * FLOORS["bfloat16"], 0.0).passed
    assert not judge("bfloat16", 3e-3, 0.0, reference_logits_error=4e-4).passed
    assert not judge("float32", float("inf"), 0.0, reference_logits_error=1.0).passed
    row = judge("float64", 0.0, 0.0)
    assert dataclasses.replace(row, logits_error=float("nan")).passed is False
