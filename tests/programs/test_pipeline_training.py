"""Training steps of whole models under pipeline schedules equal one device's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.models.config import ModelConfig
from parallax.parallel import pipeline_gradients
from parallax.parallel import two_passes as passes
from parallax.parallel.gradients import Precision
from parallax.parallel.remat import Remat
from parallax.parallel.schedules import ScheduleName
from parallax.programs.decoding import Decoder
from parallax.programs.schedule_branches import (
    schedule_branches,
    training_branches,
    training_schedule,
)
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import (
    data_parallel,
    hybrid,
    layerwise,
    ring_sequence,
    shard_weights,
    tensor_pipeline,
)
from parallax.strategy import Strategy
from parallax.workload import Workload
from tests.selection import often
from tests.strategies.cases import EXPERTS, SMALL

pytestmark = pytest.mark.slow

BATCH, LENGTH = 8, 16
FOUR = SMALL.replace(num_layers=4)
TIED = FOUR.replace(tie_embeddings=True, positions="learned")
UNEQUAL = SMALL.replace(num_layers=5)
ROUTED = EXPERTS.replace(num_layers=4, num_experts=4, load_balance=0.1)

CASES: dict[str, tuple[ModelConfig, Strategy, ScheduleName, int, Remat]] = {
    "tied": (TIED, tensor_pipeline(2, 4), "1f1b", 1, "layer"),
    "unequal, packed": (UNEQUAL, layerwise(4), "zb-h1", 1, "none"),
    "experts": (ROUTED, tensor_pipeline(2, 2), "1f1b-lockstep", 1, "layer"),
    "experts apart": (ROUTED, tensor_pipeline(2, 2, experts="colocated"), "1f1b", 1, "none"),
    "data": (FOUR, hybrid(layerwise(2), data_parallel(2)), "gpipe", 1, "attention"),
    "ring": (FOUR, hybrid(layerwise(2), ring_sequence(2)), "1f1b", 1, "none"),
    "chunks, tied": (TIED, tensor_pipeline(2, 2), "interleaved", 2, "layer"),
    "chunks, experts": (ROUTED, tensor_pipeline(2, 2), "interleaved", 2, "none"),
    "sharded weights": (
        FOUR, shard_weights(hybrid(layerwise(2), data_parallel(2)), "data"), "zb-h1", 1, "layer",
    ),
}  # fmt: skip


def gradients(config, strategy, workload, remat: Remat = "none"):
    """Loss and gradients of drawn parameters, in the layout of whole models."""
    program = ShardedTransformer(config, strategy, workload)
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    state = program.init(jax.random.key(0), mesh)
    tokens = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, config.vocab_size, np.int32)
    inputs = [tokens]
    if workload.packed:
        inputs.append(jnp.asarray(np.sort(np.arange(BATCH * LENGTH).reshape(BATCH, -1) % 3 + 1, 1)))
    run = jax.jit(program.gradients(mesh, remat, Precision("float64")))
    loss, grads = run(state, *(x.astype(jnp.int32) for x in inputs))
    return loss, program.unshard(grads)


@functools.cache
def reference(config, packed):
    return gradients(config, data_parallel(1), Workload(BATCH, LENGTH, 1, packed=packed))


def logits(config, strategy, microbatches):
    """The logits of drawn parameters' forward pass."""
    program = ShardedTransformer(config, strategy, Workload(BATCH, LENGTH, microbatches))
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    tokens = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, config.vocab_size, np.int32)
    state = program.init(jax.random.key(0), mesh)
    return np.asarray(jax.jit(program.forward(mesh, "all"))(state, tokens))


def scheduled(strategy, schedule, virtual_stages):
    return dataclasses.replace(
        strategy,
        layers=dataclasses.replace(
            strategy.layers, schedule=schedule, virtual_stages=virtual_stages
        ),
    )


@often(CASES, "chunks, tied")
def test_a_training_step_equals_one_device(name):
    config, strategy, schedule, virtual_stages, remat = CASES[name]
    strategy = scheduled(strategy, schedule, virtual_stages)
    packed = "packed" in name
    found = gradients(config, strategy, Workload(BATCH, LENGTH, 4, packed=packed), remat)
    right = reference(config, packed)
    for ours, exact in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        ours, exact = np.asarray(ours), np.asarray(exact)
        assert np.linalg.norm(ours - exact) <= 1e-11 * np.linalg.norm(exact)


def test_a_forward_pass_runs_chunks_in_the_order_of_layers():
    strategy = scheduled(tensor_pipeline(1, 2), "interleaved", 2)
    exact = logits(FOUR, data_parallel(1), 1)
    assert np.linalg.norm(logits(FOUR, strategy, 4) - exact) <= 1e-11 * np.linalg.norm(exact)


def test_chunks_are_refused_where_they_cannot_be():
    strategy = scheduled(tensor_pipeline(1, 2), "interleaved", 2)
    with pytest.raises(ValueError, match="a multiple of 4 layers"):
        ShardedTransformer(UNEQUAL, strategy, Workload(BATCH, LENGTH, 4))
    program = ShardedTransformer(FOUR, strategy, Workload(BATCH, LENGTH, 4))
    with pytest.raises(ValueError, match="chunks of layers per stage are for training"):
        Decoder(program, 1)


@pytest.mark.parametrize("name", ["data", "ring"])
def test_it_is_known_without_tracing_whether_layers_pass_data_around(name, monkeypatch):
    config, strategy, schedule, virtual_stages, remat = CASES[name]
    program = ShardedTransformer(
        config, scheduled(strategy, schedule, virtual_stages), Workload(BATCH, LENGTH, 4)
    )
    found = []

    def permutes(*arguments):
        found.append(passes.permutes(*arguments))
        return found[-1]

    monkeypatch.setattr(pipeline_gradients, "permutes", permutes)
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    shapes = jax.eval_shape(lambda key: program.init(key, mesh), jax.random.key(0))
    jax.eval_shape(program.gradients(mesh, remat), shapes, *program.abstract_inputs(mesh))
    assert found == [name == "ring"]
    table = training_schedule(program)
    assert table is not None
    assert training_branches(program) == schedule_branches(table, is_uniform=found[0])
