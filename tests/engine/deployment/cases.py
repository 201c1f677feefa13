"""One tiny model, its prompts and its unsharded tokens, shared by the tests of deployment."""

import functools

import jax

from parallax.engine.deployment import Deployment
from parallax.engine.deployment.reference import unsharded_tokens
from parallax.lenses.verifying import draw
from parallax.models.config import ModelConfig

NEW = 6
CONFIG = ModelConfig(
    "tiny", num_layers=4, d_model=32, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=64,
    vocab_size=256, mlp="gated", dtype="float64", max_seq_len=24,
)  # fmt: skip
TWO = CONFIG.replace(num_layers=2)
MIXED = (("float64", "float64"), *[("int8", "int8+2:4")] * 2, ("int4/8", "float64"))
PROMPTS = [list(b"def f("), list(b"import jax.numpy"), list(b"x")]


@functools.cache
def params(config=CONFIG):
    return draw(config)


@functools.cache
def expected(config=CONFIG):
    return unsharded_tokens(config, params(config), PROMPTS, NEW)


def deployment(devices=4, spares=0, config=CONFIG, weights=None, **options):
    """Rows of two, in two microbatches; the same programs in every test."""
    return Deployment(
        config, weights or params(config), jax.devices()[:devices], batch=4, max_len=24,
        microbatches=2, spares=spares, **options,
    )  # fmt: skip


def tokens(continuations):
    return [c.tokens for c in continuations]


def generate(made, **options):
    return made.generate(PROMPTS, max_new_tokens=NEW, **options)


def losing(made, *losses):
    """An `on_event` that loses devices at events."""
    waiting = dict(losses)

    def on_event(event):
        if event in waiting:
            made.lose(waiting.pop(event))

    return on_event
