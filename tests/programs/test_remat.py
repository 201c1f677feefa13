"""What a training step recomputes changes no gradient: the verify lens looks at one kind only."""

from typing import get_args

import jax
import numpy as np
import pytest

from parallax.parallel.gradients import Precision
from parallax.parallel.remat import Remat
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import layerwise, ring_sequence, tensor_pipeline
from parallax.workload import Workload
from tests.selection import often
from tests.strategies.cases import SMALL

pytestmark = pytest.mark.slow

STRATEGIES = {
    "pipeline": tensor_pipeline(2, 2),
    "overlapped pipeline": layerwise(2, handoff="overlapped"),
    "ring": ring_sequence(4),
}


@often(STRATEGIES, "pipeline")
def test_gradients_are_the_same_whatever_is_recomputed(name):
    strategy = STRATEGIES[name]
    program = ShardedTransformer(SMALL, strategy, Workload(8, 32, 4))
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    state = program.init(jax.random.key(0), mesh)
    tokens = jax.random.randint(jax.random.key(1), (8, 32), 0, SMALL.vocab_size, np.int32)

    def gradients(remat):
        run = jax.jit(program.gradients(mesh, remat, Precision("float64")))
        return [np.asarray(x) for x in jax.tree.leaves(run(state, tokens)[1])]

    first, *others = get_args(Remat)
    kept = gradients(first)
    assert all(np.abs(x).max() > 0 for x in kept)
    for remat in others:
        for ours, right in zip(gradients(remat), kept, strict=True):
            assert np.linalg.norm(ours - right) <= 1e-11 * np.linalg.norm(right)
