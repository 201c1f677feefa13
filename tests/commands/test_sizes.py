"""The sizes that strategies are verified at: full schedules, short tiles, few kinds and experts."""

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
