"""A training step keeps no logits, and the verify lens does: their losses and gradients agree."""

import jax
import numpy as np
import pytest

from parallax.parallel import fused_cross_entropy
from parallax.parallel.gradients import Precision
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import fsdp, tensor_pipeline
from parallax.workload import Workload
from tests.selection import in_full
from tests.strategies.cases import SMALL

pytestmark = pytest.mark.slow

CONFIG = SMALL.replace(vocab_size=250, num_layers=1)  # 252 columns over four devices
CASES = {
    "padded vocabulary": (CONFIG, tensor_pipeline(4, 1)),
    "tied, sharded weights": (CONFIG.replace(tie_embeddings=True), fsdp(2)),
}


@in_full(CASES, "tied, sharded weights")
def test_losses_and_gradients_are_those_of_the_logits(name, monkeypatch):
    config, strategy = CASES[name]
    # Logits of 50 tokens of 128 on four devices, of 12 of 64 on two.
    monkeypatch.setattr(fused_cross_entropy, "PIECE_BYTES", 50 * 63 * 8)
    program = ShardedTransformer(config, strategy, Workload(8, 32, 2))
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    state = program.init(jax.random.key(0), mesh)
    tokens = jax.random.randint(jax.random.key(1), (8, 32), 0, 250, np.int32)
    found, expected = (
        jax.jit(lambda s, t, run=run: run(mesh, "none", Precision("float64"))(s, t)[:2])(
            state, tokens
        )
        for run in (program.gradients, program.gradients_and_logits)
    )
    np.testing.assert_allclose(jax.jit(program.loss(mesh))(state, tokens), expected[0], rtol=1e-13)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(np.asarray(a - b)) <= 1e-12 * np.linalg.norm(np.asarray(b))
