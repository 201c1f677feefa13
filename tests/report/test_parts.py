"""The parts of a strategy in words."""

import pytest

from parallax.report.parts import describe_parts
from parallax.strategies import STRATEGIES, build, cache_tiled, layerwise, tensor_pipeline


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tensor_pipeline", "attention without communication; pipeline over stage, GPipe schedule"),
        ("double_ring", "ring attention over node x seq, zigzag order; all layers on every device"),
        ("ulysses_ring", "attention after all-to-alls over seq, then ring attention over node"),
        ("two_level", "attention in slices of every head over head_slice"),
        ("expert_parallel_nodes", "experts over node x expert, tokens sent by all-to-all"),
    ],
)
def test_each_part_is_named(name, said):
    strategy = build(name, devices=16, node_size=8, cluster="h100_2x8")
    text = describe_parts(strategy.to_dict(), str(strategy.mesh))
    assert text.startswith(f"mesh {strategy.mesh}; ")
    assert said in text


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_part_is_printed_as_code(name):
    strategy = build(name, devices=16, node_size=8, cluster="h100_2x8")
    assert not set("()'={}") & set(describe_parts(strategy.to_dict(), "all"))


def test_chunks_and_tiles_are_counted():
    pipeline = tensor_pipeline(8, 2).to_dict()
    layers = {**pipeline["layers"], "schedule": "interleaved", "virtual_stages": 2}
    said = describe_parts({**pipeline, "layers": layers}, "m")
    assert "pipeline over stage, interleaved schedule, 2 chunks per stage" in said
    tiled = cache_tiled(layerwise(4), attention=2, mlp=8).to_dict()
    assert "attention in 2, MLP in 8 weight tiles" in describe_parts(tiled, "m")
