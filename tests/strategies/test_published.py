"""What published models have beside the papers' is exact too: biases, tied tables, odd sizes."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from parallax.models import block
from parallax.models.config import RopeScaling
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import cache_tiled, tensor_pipeline
from parallax.workload import Workload
from tests.programs.test_decoding import check as check_decoding
from tests.programs.test_decoding import drawn, unsharded
from tests.strategies.cases import HYBRIDS, SMALL, STRATEGIES
from tests.strategies.test_exact import check, verify

pytestmark = pytest.mark.slow

# 250 rows: no mesh axis divides the vocabulary.
GPT = SMALL.replace(
    name="gpt", bias=True, tie_embeddings=True, positions="learned", norm="layernorm",
    vocab_size=250, max_seq_len=96,
)  # fmt: skip
LLAMA = SMALL.replace(
    name="llama", rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32), vocab_size=250,
    qk_norm=True, bias=True, mlp="gated", num_kv_heads=4,
)  # fmt: skip
NORM_SEQ = tensor_pipeline(4, 2, sequence_parallel_norms=True)


@pytest.fixture(autouse=True)
def nonzero_biases(monkeypatch):
    """Fresh biases are zeros, which would hide one that is added twice."""

    def bias(shape, names, dtype):
        value = 0.3 * jax.random.normal(jax.random.key(sum(shape)), shape, jnp.float64)
        return nnx.Param(value.astype(dtype), out_sharding=names)

    monkeypatch.setattr(block, "bias", bias)
    yield
    drawn.cache_clear()
    unsharded.cache_clear()


@pytest.mark.full
def test_biases_and_a_tied_table():
    check(verify(GPT, [STRATEGIES["tensor_pipeline"], cache_tiled(NORM_SEQ, 2, 4)]))


@pytest.mark.exhaustive
def test_scaled_positions_and_a_vocabulary_that_does_not_divide():
    check(verify(LLAMA, [HYBRIDS["pipeline x ring x tensor"]], packed=True))


@pytest.mark.full
def test_decoding():
    check_decoding(GPT, HYBRIDS["pipeline x ring x tensor"])


def test_a_tied_table_travels_once():
    """Each device's share of the width becomes its share of the vocabulary; nobody gathers all."""
    strategy = STRATEGIES["tensor_pipeline"]
    sharded = ShardedTransformer(GPT, strategy, Workload(8, 32))
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    state = sharded.abstract_state(mesh)
    untie = jax.jit(lambda state: sharded.untie(state, mesh)["unembed_DV"][...])
    text = untie.lower(state).compile().as_text() or ""
    assert "all-to-all" in text
    assert "all-gather" not in text
