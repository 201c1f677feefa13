"""The sizes that strategies are verified at: full schedules, short tiles, few kinds and experts."""

import pytest

import parallax as px
from parallax.commands.resolve import resolve
from parallax.models.layer_kinds import LayerKind
from parallax.parallel.experts.expert_parts import TILE
from parallax.requests.compare import CompareRequest

CONFIG = px.PAPERS["cross_node_ep"].config.replace(name="own", num_layers=24)
STRATEGIES = (px.strategies.tensor_pipeline(4, 4), px.strategies.ring_sequence(16))


def tiles(cases):
    return [getattr(strategy.experts, "tile", None) for strategy, _ in cases]


def test_schedules_are_full_and_tiles_of_experts_short():
    found = resolve(CompareRequest(model=CONFIG, strategies=STRATEGIES))
    (_, work), (_, other) = found.small_cases
    assert (work.tokens, work.microbatches, other.microbatches) == (16 * 32, 4, 2)
    chosen = CONFIG.experts_per_token / found.small_config.num_experts
    assert tiles(found.small_cases) == [max(8, int(16 * 32 / 4 * chosen / 2)), 8]
    assert tiles(found.cases) == [TILE, TILE]


def test_a_decoding_steps_tile_holds_all_tokens():
    found = resolve(CompareRequest(model=CONFIG, strategies=STRATEGIES, phase="decode"))
    assert tiles(found.small_cases) == [16, 16]


def test_a_device_of_a_ring_has_two_tokens_at_least():
    ring = px.strategies.ring_sequence(32)
    found = resolve(CompareRequest(model=CONFIG, strategies=(ring,), cluster="h200_4x8"))
    assert found.small_cases[0][1].seq_len == 64


def test_one_layer_stands_for_equal_neighbours_and_few_experts_for_many():
    kinds = (LayerKind(window=512),) * 3 + (LayerKind(),)
    config = CONFIG.replace(pattern=kinds, num_experts=256, router=None)
    small = resolve(CompareRequest(model=config, strategies=STRATEGIES)).small_config
    assert [kind.window for kind in small.kinds] == [32 // 5, None]
    assert (small.num_experts, small.num_layers % 8) == (4, 2)  # of two patterns left over, one


@pytest.mark.parametrize(
    ("strategy", "sizes", "said"),
    [
        (px.strategies.ring_sequence(16), {"batch": 10**25}, "batch 10,000,.*not a size of an arr"),
        (px.strategies.ring_sequence(16), {"seq_len": 10**23}, "seq_len 100,000,000,.*at most 2,1"),
        (px.strategies.data_parallel(16), {"seq_len": 4 * 2**20}, "to 4,194,304 tokens on one dev"),
        (px.strategies.data_parallel(16), {"batch": 2**26}, "between layers alone are .* TB, exp"),
    ],
    ids=["batch", "seq_len", "blocks", "activations"],
)
def test_what_no_device_can_hold_is_refused_before_it_starts(strategy, sizes, said):
    for lenses in (("compile", "predict"), ("predict",)):
        request = CompareRequest(model=CONFIG, strategies=(strategy,), lenses=lenses, **sizes)
        with pytest.raises(ValueError, match=f"{said}.* Use a smaller"):
            resolve(request)


def test_a_long_sequence_runs_where_a_strategy_splits_it():
    strategies = (px.strategies.data_parallel(16), px.strategies.ring_sequence(16))
    asked = CompareRequest(model=CONFIG, strategies=strategies, seq_len=4 * 2**20)
    found = resolve(asked)
    assert [s.name for s, _ in found.cases] == ["ring_sequence"]
    assert "at most 2,097,152" in found.refused["data_parallel"]["compile"]
