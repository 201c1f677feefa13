"""Latent attention in both forms against loops over heads, and what it caches and sends."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from parallax.lenses.verifying import relative_error
from parallax.models import latent
from parallax.models.latent import LatentAttention
from parallax.models.layer_kinds import EVERY_TOKEN
from parallax.models.layer_kinds import LatentAttention as Sizes
from parallax.models.rope import rotation
from parallax.parallel.attention_parts import Local
from parallax.parallel.split import Split
from tests.strategies.cases import LATENT

FEW = LATENT.replace(num_heads=2, num_kv_heads=2, norm_epsilon=1e-30)
CONFIGS = {
    "query rank": FEW,
    "scaled, all tokens": FEW.replace(latent=Sizes(24, None, 6, 14), score_scale=0.5, causal=False),
}


@dataclasses.dataclass(frozen=True)
class Travelling(Local):
    """Attention of one device that asks for latents, as a ring does."""

    @property
    def keys_travel(self):
        return True


FORMS = {"expanded": Split(), "absorbed": Split(attention=Travelling())}


@functools.cache
def made(config):
    with nnx.use_eager_sharding(False):
        module = LatentAttention(config, rngs=nnx.Rngs(params=0))
    graph, state = nnx.split(module)
    # Norms' scales of ones would hide whether they are there.
    noise = np.random.default_rng(3)
    return graph, nnx.map_state(
        lambda path, w: w.replace(w[...] * noise.uniform(0.5, 1.5, w.shape))
        if path[-1] == "scale" else w, state,
    )  # fmt: skip


def with_gradients(forward, state, x, d_out):
    @jax.jit
    def run(state, x, d_out):
        out, vjp = jax.vjp(forward, state, x)
        return jax.tree.leaves((out, *vjp(d_out)))

    return run(state, x, d_out)


def run(config, split):
    """(parameters, x) -> (output, gradients) of the module in one form."""
    graph, state = made(config)
    x, d_out = (np.random.default_rng(seed).normal(size=(2, 10, 64)) for seed in (1, 2))
    positions = jnp.arange(10, dtype=jnp.int32)[None]
    angles = rotation(positions, config.rotated_dim, config.rope_theta, "float64")

    def forward(state, x):
        return nnx.merge(graph, state)(x, angles, None, split, EVERY_TOKEN)[0]

    return with_gradients(forward, state, x, d_out)


@functools.cache
def by_head(config):
    """The same from the definition: one head at a time, rotation as complex numbers."""
    _, state = made(config)
    sizes, plain = config.latent, config.head_dim - config.latent.rope_dim
    x, d_out = (np.random.default_rng(seed).normal(size=(2, 10, 64)) for seed in (1, 2))

    def normed(y, scale):
        return y * (y**2).mean(-1, keepdims=True) ** -0.5 * scale

    def turned(y):
        pairs = y[..., ::2] + 1j * y[..., 1::2]
        frequencies = config.rope_theta ** (-np.arange(sizes.rope_dim // 2) * 2 / sizes.rope_dim)
        pairs = pairs * np.exp(1j * np.arange(10)[:, None] * frequencies)
        return jnp.stack([pairs.real, pairs.imag], -1).reshape(y.shape)

    def forward(state, x):
        w = {k: v[...] for k, v in state.items() if k not in ("qa_norm", "kva_norm")}
        joined = x @ w["kva_DT"]
        c = normed(joined[..., : sizes.kv_rank], state["kva_norm"]["scale"][...])
        rope = turned(joined[..., sizes.kv_rank :])
        if sizes.q_rank is None:
            a, up = x, w["q_DHK"]
        else:
            a, up = normed(x @ w["qa_DR"], state["qa_norm"]["scale"][...]), w["q_RHK"]
        y = jnp.zeros_like(x)
        for h in range(config.num_heads):
            q, k, v = a @ up[:, h], c @ w["kb_CHK"][:, h], c @ w["vb_CHV"][:, h]
            scores = q[..., :plain] @ jnp.swapaxes(k, 1, 2)
            scores = scores + turned(q[..., plain:]) @ jnp.swapaxes(rope, 1, 2)
            scores = scores * (config.score_scale or config.head_dim**-0.5)
            if config.causal:
                scores = jnp.where(np.tril(np.ones((1, 10, 10), bool)), scores, -jnp.inf)
            y = y + jax.nn.softmax(scores, -1) @ v @ w["out_HVD"][h]
        return y

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return with_gradients(forward, state, x, d_out)


def error(found, right):
    pairs = zip(found, right, strict=True)
    return max(relative_error(np.asarray(a), np.asarray(b)) for a, b in pairs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONFIGS)
def test_both_forms_are_the_definitions_with_gradients(name, form):
    assert error(run(CONFIGS[name], FORMS[form]), by_head(CONFIGS[name])) < 1e-11


def rotate_nothing(patch):
    patch.setattr(latent, "rotate", lambda x, angles: x)


def skip_the_norm(patch):
    patch.setattr(latent.LatentNorm, "__call__", lambda self, x: x + 0 * self.scale[...].sum())


def scale_of_the_latents_width(patch):
    exact = Split.attend

    def attend(self, *args, scoring, **rest):
        return exact(self, *args, scoring=dataclasses.replace(scoring, scale=None), **rest)

    patch.setattr(Split, "attend", attend)


def drop_the_values_gradient(patch):
    module = importlib.import_module("parallax.parallel.ring_attention")
    patch.setattr(module, "_added", lambda dk, dv: dk)


MUTATIONS = [rotate_nothing, skip_the_norm, scale_of_the_latents_width, drop_the_values_gradient]


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda m: m.__name__)
def test_mutations_are_seen(mutate, monkeypatch):
    mutate(monkeypatch)
    assert error(run(FEW, FORMS["absorbed"]), by_head(FEW)) > 1e-3
