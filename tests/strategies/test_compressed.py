"""Weights stored compressed: under every strategy the same function, bytes of the table."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from parallax.lenses.verify_decoding import verify_decoding
from parallax.lenses.verifying import draw
from parallax.models.compressing import compress_params
from parallax.placement import layer_footprints
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainStep
from parallax.strategies import data_parallel, expert_parallel, layerwise, tensor_pipeline
from parallax.workload import Workload
from tests.selection import together
from tests.strategies.cases import (
    EXPERTS,
    GQA_FULL,
    HYBRIDS,
    SMALL,
    STRATEGIES,
    TILE,
    UNEQUAL,
    VARIANTS,
    workload,
)
from tests.strategies.test_exact import TEXT, check, verify

pytestmark = pytest.mark.slow

MIXED = ("int8", "int8+2:4")


@pytest.mark.full
@together(STRATEGIES, "tensor_pipeline", "layerwise")
def test_all_strategies_with_the_papers_formats(chosen):
    check(verify(SMALL.replace(compression=MIXED), chosen))


@pytest.mark.full
def test_integer_products_have_one_scale_a_token_over_all_devices():
    strategy = HYBRIDS["pipeline x ring x tensor"]
    check(verify(SMALL.replace(compression=("w8a8", "w8a8")), [strategy]))


@pytest.mark.exhaustive
def test_groups_sparse_attention_biases_and_unequal_stages():
    fine = GQA_FULL.replace(compression=("int8/4", "int4/16+2:4"), bias=True)
    check(verify(fine, [STRATEGIES["data_parallel"]], packed=True))
    check(verify(UNEQUAL.replace(compression=("int8+2:4", "int4/16")), [layerwise(4)]))


@pytest.mark.full
def test_slabs_are_cut_from_what_is_stored():
    check(verify(SMALL.replace(compression=MIXED), [VARIANTS["tiled ring x tensor"]]))


@pytest.mark.exhaustive
def test_experts():
    config = EXPERTS.replace(compression=MIXED)
    check(verify(config, [expert_parallel(8, tile=TILE)]))


@pytest.mark.exhaustive
def test_lower_precision_is_as_near_as_the_unsharded_model():
    check(verify(SMALL.replace(compression=MIXED), [STRATEGIES["data_parallel"]],
                 ("float64", "bfloat16")))  # fmt: skip


@pytest.mark.parametrize("compression", [None, ("int8", "int8"), MIXED, ("float16+2:4", "int4/16")])
def test_stored_bytes_are_the_tables(compression):
    config = SMALL.replace(dtype="float16", compression=compression)
    sharded = ShardedTransformer(config, data_parallel(1), Workload(1, 16, 1))
    state = sharded.init(jax.random.key(0), data_parallel(1).mesh.build(jax.devices()[:1]))
    held = sum(x.nbytes for x in jax.tree.leaves(state["layers"]))
    formats = [compression or ("float16", "float16")] * config.num_layers
    assert held == sum(f.weights for f in layer_footprints(config, formats))
    assert held == sum(jax.tree.leaves(sharded.shard_bytes()["layers"]))


def test_decoding():
    strategies = [STRATEGIES["tensor_pipeline"]]
    cases = [(s, workload(s)) for s in strategies]
    config = SMALL.replace(compression=MIXED)
    check(verify_decoding(config, cases, TEXT, "text", ("float64",), new_tokens=4))


def test_weights_compress_under_any_strategy():
    """What is compressed where it lies is what was compressed whole, and what is drawn so."""
    config = SMALL.replace(compression=("int8", "int4/16+2:4"), dtype="float32")
    dense = draw(config.replace(compression=None))
    whole = compress_params(dense, config)
    assert jax.tree.structure(whole) == jax.tree.structure(draw(config))
    strategy = STRATEGIES["tensor_pipeline"]
    sharded = ShardedTransformer(config, strategy, workload(strategy))
    plain = ShardedTransformer(config.replace(compression=None), strategy, workload(strategy))
    mesh = strategy.mesh.build(jax.devices()[:16])
    shardings = [
        jax.tree.map(lambda spec: NamedSharding(mesh, spec), s.specs) for s in (plain, sharded)
    ]
    placed = jax.jit(plain.shard, out_shardings=shardings[0])(dense)
    found = jax.jit(lambda s: compress_params(s, config), out_shardings=shardings[1])(placed)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="multiples of 128"):
        SMALL.replace(compression=("int8", "int4"), d_ff=192)
    with pytest.raises(ValueError, match="experts multiply"):
        EXPERTS.replace(compression=("int8", "w8a8"))
    with pytest.raises(ValueError, match="formats, attention"):
        SMALL.replace(compression=("int8",))
    with pytest.raises(ValueError, match="head_dim"):
        SMALL.replace(compression=("int4/16", "int8"))
    with pytest.raises(ValueError, match="positions .*does not divide|8 does not divide"):
        ShardedTransformer(
            SMALL.replace(compression=("int8", "int8+2:4"), d_ff=32), tensor_pipeline(8, 2),
            Workload(16, 80, 1),
        )  # fmt: skip
    sharded = ShardedTransformer(
        SMALL.replace(compression=MIXED), tensor_pipeline(8, 2), workload(tensor_pipeline(8, 2))
    )
    with pytest.raises(ValueError, match="then compress"):
        TrainStep(sharded)
