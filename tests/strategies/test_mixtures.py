"""Every strategy computes mixtures with biases, shared experts, groups and other gates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parallax.lenses import verify_decoding as decoding
from parallax.lenses import verifying
from parallax.lenses.text import read_text
from parallax.models.transformer import abstract_transformer
from parallax.parallel.split import UNSPLIT, Split
from parallax.parallel.varying import vary_over
from parallax.programs.sharded_model import ShardedTransformer
from parallax.workload import Workload
from tests.parallel.experts.test_routing import chosen
from tests.selection import often
from tests.strategies.cases import LEARNED_BIAS, MIXTURE, MIXTURES, WITH_DENSE, workload

pytestmark = pytest.mark.slow

LENGTH = 32
TEXT = read_text(None, 16 * LENGTH)[0]


@pytest.fixture(autouse=True)
def _drawn_biases(monkeypatch):
    """Biases start at zero, where errors in them do not show."""

    def draw(config):
        def noisy(path, w):
            if "bias" not in str(path[-1]):
                return w
            key = jax.random.key(sum(map(ord, "".join(map(str, path)))))
            noise = jax.random.normal(key, w.shape, jnp.float64) * 0.3
            return w.replace(noise.astype(w[...].dtype))

        return nnx.map_state(noisy, plain(config))

    plain = verifying.draw
    monkeypatch.setattr(verifying, "draw", draw)
    monkeypatch.setattr(decoding, "draw", draw)


def verify(config, name):
    strategy = MIXTURES[name]
    cases = [(strategy, workload(strategy, seq_len=LENGTH))]
    (result,) = verifying.verify_transformer(config, cases, TEXT, "text", ("float64",))
    return result


@often(MIXTURES, "expert x tensor")
def test_logits_and_gradients(name):
    result = verify(MIXTURE, name)
    assert 0.5 < result.logit_rms < 2
    assert result.router is not None
    assert result.router.dropped == 0
    assert result.router.smallest_margin > 1e-9
    assert result.rows[0].passed, result.rows


@pytest.mark.exhaustive
def test_a_learned_bias_of_the_router():
    result = verify(LEARNED_BIAS, "pipeline x tensor")
    assert result.rows[0].passed, result.rows


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["pipeline x tensor", "expert x fsdp"])
def test_decoded_tokens(name):
    cases = [(MIXTURES[name], Workload(16, 16))]
    (result,) = decoding.verify_decoding(MIXTURE, cases, TEXT, "text", ("float64",), new_tokens=6)
    assert result.same_tokens
    assert result.rows[0].passed, result.rows


@pytest.mark.full
def test_a_bias_that_every_device_adds_is_seen(monkeypatch):
    monkeypatch.setattr(Split, "once", lambda self, x, axes: vary_over(x, axes))
    result = verify(LEARNED_BIAS, "pipeline x tensor")
    assert result.rows[0].logits_error > 1e-3


def test_a_mixture_by_loops():
    """A layer's mixture on one device, token by token and expert by expert."""
    layer = verifying.draw(MIXTURE)["layers"]["mlp"]
    w = {path: np.asarray(x[...][0]) for path, x in nnx.to_flat_state(layer)}
    x = np.asarray(jax.random.normal(jax.random.key(1), (1, 12, MIXTURE.d_model), "float64"))
    block = nnx.merge(*abstract_transformer(MIXTURE)).layers
    graph, _ = nnx.split(block.mlp)
    one = nnx.map_state(lambda _, v: v.replace(v[...][0]), layer)
    found, stats = nnx.merge(graph, one)(jnp.asarray(x), UNSPLIT)

    def mlp(x, parts):
        up, up_bias, gate, gate_bias, down, down_bias = parts
        u, g = x @ up + up_bias, np.minimum(x @ gate + gate_bias, MIXTURE.gate_limit)
        u = np.clip(u, -MIXTURE.gate_limit, MIXTURE.gate_limit)
        return (u + 1) * g / (1 + np.exp(-1.702 * g)) @ down + down_bias

    names = "up_{}DF", "up_bias_{}F", "gate_{}DF", "gate_bias_{}F", "down_{}FD", "down_bias_{}D"
    routed = [w[n.format("E"),] for n in names]
    shared = [w["shared", n.format("")] for n in names]
    router, flips = MIXTURE.router, 0
    assert router is not None
    for t, row in enumerate(x[0]):
        p = 1 / (1 + np.exp(-row @ w["router_DE",]))
        ids, _ = chosen(p, w["choice_bias_E",], router, MIXTURE.experts_per_token)
        flips += ids != chosen(p, 0 * p, router, MIXTURE.experts_per_token)[0]
        y = mlp(row, shared)
        for e in ids:
            y = y + router.scale * p[e] / p[ids].sum() * mlp(row, [m[e] for m in routed])
        np.testing.assert_allclose(found[0, t], y, rtol=1e-11, atol=1e-11)
    assert flips > 0
    assert stats.flips == 0


def test_dense_layers_beside_experts_that_are_dealt_out_are_refused():
    with pytest.raises(ValueError, match=r"axes \('tensor',\) do not split the MLPs of the 2"):
        ShardedTransformer(WITH_DENSE, MIXTURES["colocated"], Workload(16, 16))


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["pipeline x tensor", pytest.param("expert x fsdp", marks=pytest.mark.exhaustive)]
)
def test_dense_layers_before_a_stack_of_mixtures(name):
    result = verify(WITH_DENSE, name)
    assert result.rows[0].passed, result.rows
    cases = [(MIXTURES[name], Workload(16, 16))]
    (result,) = decoding.verify_decoding(
        WITH_DENSE, cases, TEXT, "text", ("float64",), new_tokens=4
    )
    assert result.same_tokens
    assert result.rows[0].passed, result.rows
