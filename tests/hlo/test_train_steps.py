"""The parser and the ledger understand whole training steps compiled for CUDA."""

import functools

import jax
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from parallax.hlo import compare, dtype_rows, jaxpr_ledger, parse_module, read_ledger
from parallax.hlo.flops import module_flops
from parallax.models.config import ModelConfig
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import data_parallel, ring_sequence, tensor_pipeline
from parallax.workload import Workload
from tests.hlo.conftest import Case
from tests.selection import in_full

pytestmark = pytest.mark.slow

CONFIG = ModelConfig(
    name="small", num_layers=2, d_model=128, num_heads=16, num_kv_heads=16, head_dim=16, d_ff=256,
    vocab_size=512, dtype="bfloat16", max_seq_len=128,
)  # fmt: skip
STRATEGIES = {
    "data_parallel": data_parallel(16),
    "sequence_parallel_norms": tensor_pipeline(8, 2, sequence_parallel_norms=True),
    "ring_sequence": ring_sequence(16),
}


@pytest.fixture(scope="module")
def steps(cuda):
    """Compiled text, jaxpr and mesh axes of a strategy's training step, by its name; made once."""
    return functools.cache(functools.partial(_step, cuda))


def _step(cuda, name) -> Case:
    """Loss, gradients and AdamW."""
    strategy = STRATEGIES[name]
    microbatches = 1 if name == "data_parallel" else 2
    sharded = ShardedTransformer(CONFIG, strategy, Workload(16, 128, microbatches, False))
    mesh = cuda.mesh(**dict(strategy.mesh_axes))
    loss, optimiser = sharded.loss(mesh), optax.adamw(1e-3)

    def run(state, moments, *inputs):
        value, gradients = jax.value_and_grad(loss)(state, *inputs)
        with jax.numpy_dtype_promotion("standard"):  # Adam counts steps in whole numbers.
            updates, moments = optimiser.update(gradients, moments, state)
            return optax.apply_updates(state, updates), moments, value

    state = sharded.abstract_state(mesh)
    where = {x.shape: x.sharding for x in jax.tree.leaves(state)}
    everywhere = NamedSharding(mesh, PartitionSpec())

    def placed(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where.get(x.shape, everywhere))

    moments = jax.tree.map(placed, jax.eval_shape(optimiser.init, state))
    out = [jax.tree.map(lambda x: x.sharding, tree) for tree in (state, moments)]
    jitted = jax.jit(run, out_shardings=(*out, everywhere))
    traced = jitted.trace(state, moments, *sharded.abstract_inputs(mesh))
    text = traced.lower().compile().as_text()
    assert text is not None
    return Case(text, traced.jaxpr, dict(strategy.mesh_axes))


@in_full(STRATEGIES, "ring_sequence")
def test_both_witnesses_account_for_a_training_step(steps, name):
    """What was traced is what was compiled."""
    step = steps(name)
    ledger, witness = read_ledger(step.text, step.axes), jaxpr_ledger(step.jaxpr, step.axes)
    assert not ledger.is_bound
    compiled = ledger.by_kind_and_axes()
    assert compare(witness, ledger) == ()
    moves = {kind for kind, _ in compiled if kind not in ("all-reduce", "collective-permute")}
    assert (
        moves
        == {
            "data_parallel": set(),
            "sequence_parallel_norms": {"all-gather", "reduce-scatter"},
            "ring_sequence": set(),
        }[name]
    )
    rows = dtype_rows(ledger)
    assert sum(r.total_bytes for r in rows) == pytest.approx(ledger.total(), rel=1e-12)
    assert {r.dtype for r in rows} <= {"bf16", "f32", "s32"}


def test_gradients_of_every_parameter_are_summed_in_their_dtype(steps):
    """Once each, in the parameter's dtype; the loss in float32."""
    step = steps("data_parallel")
    width, ff = CONFIG.d_model, CONFIG.d_ff
    matrices = 2 * (4 * width * 256 + 2 * width * ff) + 2 * width * CONFIG.vocab_size
    scales, loss = (2 * 2 + 1) * width, 1
    rows = {r.dtype: r.total_bytes for r in dtype_rows(read_ledger(step.text, step.axes))}
    assert rows == {
        "bf16": 2 * 15 / 16 * 2 * (matrices + scales),
        "f32": 2 * 15 / 16 * 4 * loss,
    }


@in_full(STRATEGIES, "ring_sequence")
def test_matrix_products_run_three_times_as_often_as_forward(steps, name):
    """Forward, and backward for either factor; what a pipeline repeats in its bubble on top."""
    module = parse_module(steps(name).text)
    tokens, width = 16 * 128, CONFIG.d_model
    layers = 2 * tokens * 2 * (4 * width * 256 + 2 * width * CONFIG.d_ff) / 16
    head = 2 * tokens * width * CONFIG.vocab_size / 16
    found = module_flops(module).high - module_flops(module, "attention_core").high
    bubble = 3 / 2 if name == "sequence_parallel_norms" else 1
    assert found == pytest.approx(3 * (layers + head) * bubble, rel=1e-9)


def test_arrays_of_several_dtypes_travel_together(steps):
    """Around the ring backward, keys and values (bfloat16) and their gradients (float32)."""
    step = steps("ring_sequence")
    moved = [c for c in read_ledger(step.text, step.axes) if c.parts]
    assert moved
    for c in moved:
        assert c.kind == "collective-permute"
        assert {dtype for dtype, _ in c.parts} == {"bf16", "f32"}
        assert c.wire_bytes == sum(size for _, size in c.parts)
