"""Training states for tests of checkpoints: an uneven model under unlike strategies."""

import functools

import jax
import numpy as np

from parallax.engine.optimizer import Adamw
from parallax.engine.whole_state import named, whole
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainStep
from parallax.strategies import (
    data_parallel,
    hybrid,
    layerwise,
    ring_sequence,
    tensor_pipeline,
    two_level,
    ulysses,
)
from parallax.workload import Workload
from tests.strategies.cases import SMALL

# Three layers on two stages and 250 tokens on eight devices: both are filled up; biases too.
CONFIG = SMALL.replace(name="uneven", num_layers=3, d_model=32, d_ff=64, vocab_size=250, bias=True)
STRATEGIES = {
    "one device": data_parallel(1),
    "data_parallel": data_parallel(16),
    "tensor_pipeline": tensor_pipeline(8, 2),
    "ring_sequence": ring_sequence(16),
    "two_level": two_level(4, 4),
    "layerwise": layerwise(2, layers=(1, 2)),
    "ulysses": ulysses(8),
    "pipeline x ring x tensor": hybrid(layerwise(2), ring_sequence(4), tensor_pipeline(2, 1)),
}
BATCH, SEQ_LEN = 16, 32


@functools.cache
def step_of(strategy, config=CONFIG) -> TrainStep:
    sharded = ShardedTransformer(config, strategy, Workload(BATCH, SEQ_LEN))
    return TrainStep(sharded, Adamw(1e-2, 2).build(20), param_dtype=config.dtype)


def mesh_of(strategy):
    return strategy.mesh.build(jax.devices()[: strategy.mesh.size])


@functools.cache
def compiled(strategy):
    step, mesh = step_of(strategy), mesh_of(strategy)
    return jax.jit(step.step(mesh), out_shardings=(step.shardings(mesh), None))


def batch(seed):
    return np.random.default_rng(seed).integers(0, 250, (BATCH, SEQ_LEN)).astype(np.int32)


def arrays(strategy, state):
    """Of the model's own layout, by name."""
    return {name: np.asarray(x) for name, x in named(whole(step_of(strategy), state)).items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert x.dtype == b[name].dtype
        np.testing.assert_array_equal(x, b[name], err_msg=name)
