"""Cache-tiled layers whose MLP is one kernel: the same model, from the stack, on 16 devices."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from parallax.kernels import dispatch
from parallax.kernels.interpreting import interpreted
from parallax.models import streamed_mlp
from parallax.models.transformer import abstract_transformer
from parallax.strategies import cache_tiled, data_parallel, tensor_pipeline
from tests.programs.test_decoding import check as check_decoding
from tests.strategies.cases import SMALL, VARIANTS
from tests.strategies.test_exact import check, verify
from tests.strategies.test_published import LLAMA
from tests.strategies.test_published import nonzero_biases as nonzero_biases

pytestmark = pytest.mark.slow

STAGES = cache_tiled(tensor_pipeline(2, 2), 1, 2, round=2)
TWO = cache_tiled(data_parallel(2), 1, 2)


@pytest.fixture
def asked(monkeypatch):
    """The kernel's operation by its reference, as if it could; how often."""
    calls = []

    def counted(*arguments, **options):
        calls.append(options["layer"])
        return operation(*arguments, **options)

    operation = streamed_mlp.cache_tiled_mlp
    monkeypatch.setattr(streamed_mlp, "cache_tiled_mlp", counted)
    monkeypatch.setattr(streamed_mlp, "runs_kernel", lambda *_: True)
    return calls


@pytest.mark.full
@pytest.mark.parametrize(
    ("config", "strategy"),
    [
        (SMALL, VARIANTS["tiled ring x tensor"]),
        (LLAMA.replace(compression=("int8", "int8/16")), TWO),
    ],
    ids=["gelu", "gated, int8 in groups, biases"],
)
def test_it_is_the_same_model_on_many_devices(asked, config, strategy):
    check(verify(config, [strategy]))
    assert asked


def test_it_is_the_same_model_decoding(asked):
    check_decoding(SMALL.replace(compression=("int8", "int8")), STAGES)
    assert asked


def test_another_layer_would_be_seen(asked, monkeypatch):
    right = streamed_mlp.cache_tiled_mlp
    monkeypatch.setattr(
        streamed_mlp, "cache_tiled_mlp", lambda *a, layer, **o: right(*a, layer=0 * layer, **o)
    )
    (result,) = verify(SMALL, [TWO])
    assert not any(row.passed for row in result.rows)


def through(config, dtype="bfloat16"):
    """The result's shape; None where slabs have to do it."""
    graph, state = abstract_transformer(config)
    h = jax.ShapeDtypeStruct((4, 2, 1, config.d_model), dtype)

    def run(h, state):
        layers = nnx.merge(graph, state).layers
        found = streamed_mlp.streamed_mlp(h, layers.mlp, nnx.split(layers)[1]["mlp"], 0)
        return () if found is None else found

    return jax.eval_shape(run, h, state) or None


@pytest.mark.parametrize(
    ("compression", "runs"),
    [
        (None, True),
        (("float16", "int8"), True),
        (("int8", "int8/64"), True),
        (("int8", "bfloat16"), True),
        (("int8", "int8/32"), False),
        (("int8", "int4/16"), False),
        (("int8", "int8+2:4"), False),
        (("int8", "w8a8"), False),
        (("int8", "float16"), False),
    ],
)
def test_it_runs_where_somebody_asked_and_it_knows_the_format(compression, runs):
    config = SMALL.replace(d_model=128, dtype="bfloat16", compression=compression)
    assert through(config) is None
    with dispatch.enabling("mosaic"), dispatch.refusals() as told, interpreted():
        found = through(config)
    assert (found is not None) == runs
    assert (not told) == runs  # never in silence
    if found is not None:
        assert found.shape == (4, 2, 1, config.d_model)
        assert found.dtype == jnp.float32
