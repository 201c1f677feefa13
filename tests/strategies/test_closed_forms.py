"""What a whole model's forward pass sends, in its jaxpr, is what the closed forms say."""

import jax
import pytest

from parallax.communication import forward_transfers
from parallax.hlo.compare import differing_totals
from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.spmd import ShardedTransformer
from parallax.strategies import tensor_pipeline, two_level, ulysses
from parallax.workload import Workload
from tests.strategies.cases import GQA_FULL, PRODUCTS, SMALL, STRATEGIES, workload

CASES = {name: (SMALL.replace(qk_norm=True), s) for name, s in (STRATEGIES | PRODUCTS).items()} | {
    # Two key/value heads: every device computes both and keeps, or is sent, the one it reads.
    "few key heads, tensor": (GQA_FULL, tensor_pipeline(8, 2, split_kv_heads=False)),
    "few key heads, two_level": (GQA_FULL, two_level(4, 4, split_kv_heads=False)),
    "few key heads, ulysses": (GQA_FULL, ulysses(16)),
}


@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_the_jaxpr_sends_what_the_closed_form_says(name, packed):
    config, strategy = CASES[name]
    config = config.replace(dtype="float32")
    work = workload(strategy, packed)
    program = ShardedTransformer(config, strategy, work)
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    traced = jax.make_jaxpr(program.forward(mesh))(
        program.abstract_state(mesh), *program.abstract_inputs(mesh)
    )
    found = jaxpr_ledger(traced, strategy.mesh_axes).by_kind_and_axes()
    expected = {}
    for t in forward_transfers(config, strategy, work):
        expected[t.kind, t.axes] = expected.get((t.kind, t.axes), 0.0) + t.wire_bytes
    assert not differing_totals(expected, found)
    assert bool(found) == (name != "data_parallel")


def test_what_a_part_cannot_split_is_refused_when_model_and_strategy_meet():
    with pytest.raises(ValueError, match="does not divide 8 query heads"):
        ShardedTransformer(SMALL, ulysses(16), Workload(16, 80))
    with pytest.raises(ValueError, match="4 query shards, which do not divide 82 tokens"):
        ShardedTransformer(SMALL, two_level(8, 4, reduction="exchange"), Workload(16, 82))
