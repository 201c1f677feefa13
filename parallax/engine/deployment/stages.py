"""The programs of a chain's devices: pure functions, compiled once for each shape and device.

A cache slot is a token's position, so a step that is run again writes the same key to the same
place, and a pass that a lost device interrupted is simply run again.
Shapes: B sequences of a microbatch, L = C tokens and slots of one, D model width, G key/value
heads, K head_dim.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import SingleDeviceSharding

from parallax.engine.deployment.stored import end_names
from parallax.engine.layer_formats import Formats
from parallax.models.block import attention_shape
from parallax.models.compressing import layer_config
from parallax.models.config import ModelConfig
from parallax.models.transformer import Transformer, abstract_transformer
from parallax.parallel.attention_part import KvLayout
from parallax.parallel.cached_attention import CachedLayer, CachedLayers
from parallax.parallel.split import UNSPLIT
from parallax.programs.decoding import step_options

CACHED = UNSPLIT.replace(kv=KvLayout())
Phase = Literal["prefill", "step"]
# One layer's keys and values, [B, G, C, K] each; latents have no values.
Kv = tuple[jax.Array, jax.Array | None]


def _with(config: ModelConfig, **parts: Any) -> Transformer:
    """Return a Transformer that has only these parts."""
    graph, shapes = abstract_transformer(config)
    return nnx.merge(graph, nnx.State({**shapes, **parts}))


def embed(config: ModelConfig, tables: nnx.State, tokens_BL, positions_BL):
    """Embed tokens at positions: [B, L, D]."""
    return _with(config, **tables).look_up(tokens_BL, positions_BL, CACHED)


def prefill(config: ModelConfig, formats: tuple[Formats, ...], layers, x_BLD):
    """Run a group over whole sequences: ([B, L, D], keys and values of each layer)."""
    positions_BL = jnp.arange(x_BLD.shape[1], dtype=jnp.int32)[None]
    caches = []
    for pair, layer in zip(formats, layers, strict=True):
        model = _with(layer_config(config, pair), layers=layer)
        x_BLD, (_, kv) = model.through_layers(x_BLD, positions_BL, CACHED)
        caches.append(jax.tree.map(lambda x: jnp.swapaxes(x[0], 1, 2), kv))
    return x_BLD, tuple(caches)


def step(config: ModelConfig, formats: tuple[Formats, ...], layers, kv, x_B1D, at_B):
    """Run a group over one token per sequence, at positions [B]: ([B, 1, D], updated kv)."""
    caches = []
    rows = jnp.arange(at_B.shape[0], dtype=jnp.int32)

    def before(keys, values, window: int | None) -> CachedLayer:
        first_B = jnp.zeros_like(at_B) if window is None else jnp.maximum(at_B - window + 1, 0)
        spans_B12 = jnp.stack([first_B, at_B], axis=-1)[:, None]
        return CachedLayer(keys, values, spans_B12, jnp.asarray(True))

    for pair, layer, old in zip(formats, layers, kv, strict=True):
        keys, values = jax.tree.map(lambda x: x[None], old)
        cache = CachedLayers(keys, values, before)
        model = _with(layer_config(config, pair), layers=layer)
        in_step = CACHED.replace(decodes=True)
        x_B1D, (_, new) = model.through_layers(x_B1D, at_B[:, None], in_step, cache=cache)
        caches.append(jax.tree.map(lambda x, own: x.at[rows, :, at_B].set(own[0]), old, new))
    return x_B1D, tuple(caches)


def head(config: ModelConfig, end: nnx.State, x_BLD, at_B):
    """Return the most likely next token [B] int32 after position at_B of each sequence."""
    rows = jnp.arange(x_BLD.shape[0], dtype=jnp.int32)
    logits_BV = _with(config, **end).head(x_BLD[rows, at_B], UNSPLIT)
    return logits_BV.argmax(-1).astype(jnp.int32)


@functools.lru_cache(maxsize=4096)
def group_program(
    config: ModelConfig, formats: tuple[Formats, ...], rows: int, slots: int, phase: Phase,
    device: Any,
) -> Any:  # fmt: skip
    """Return the compiled `prefill` or `step` of a group in these formats, on one device.

    Equal groups share it; JAX traces once for all devices and XLA compiles for each.
    """
    layers = tuple(abstract_transformer(layer_config(config, f))[1]["layers"] for f in formats)
    x = jax.ShapeDtypeStruct((rows, slots if phase == "prefill" else 1, config.d_model),
                             config.dtype)  # fmt: skip
    if phase == "prefill":
        return _compile(_jitted("prefill", config, formats), (layers, x), device)
    shape = attention_shape(config, UNSPLIT, rows, slots, packed=False, cached=True)
    keys = jax.ShapeDtypeStruct((rows, shape.kv_heads, slots, shape.head_dim), config.dtype)
    kv = keys, None if shape.shared_values else keys
    inputs = (layers, (kv,) * len(formats), x, jax.ShapeDtypeStruct((rows,), jnp.int32))
    options = step_options(rows, [name for pair in formats for name in pair])
    if device.platform == "cpu":
        options = None  # the compiler options are for GPUs
    return _compile(_jitted("step", config, formats), inputs, device, options)


@functools.lru_cache(maxsize=4096)
def end_program(
    config: ModelConfig, which: Literal["first", "last"], rows: int, slots: int, phase: Phase,
    device: Any,
) -> Any:  # fmt: skip
    """Return the compiled `embed` or `head` on one device."""
    shapes = abstract_transformer(config)[1]
    held = nnx.State({name: shapes[name] for name in end_names(config, which)})
    length = slots if phase == "prefill" else 1
    at_B = jax.ShapeDtypeStruct((rows,), jnp.int32)
    if which == "last":
        x = jax.ShapeDtypeStruct((rows, length, config.d_model), config.dtype)
        return _compile(_jitted("head", config), (held, x, at_B), device)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    positions = jax.ShapeDtypeStruct((1 if phase == "prefill" else rows, length), jnp.int32)
    return _compile(_jitted("embed", config), (held, tokens, positions), device)


def programs_compiled() -> int:
    """Return the number of programs compiled so far in this process."""
    return sum(f.cache_info().misses for f in (group_program, end_program))


@functools.lru_cache(maxsize=256)
def _jitted(what: str, *static: Any) -> Any:
    function = {"embed": embed, "prefill": prefill, "step": step, "head": head}[what]
    # A step's cache is changed in place.
    return jax.jit(functools.partial(function, *static), donate_argnums=1 if what == "step" else ())


def _compile(jitted: Any, inputs: Any, device: Any, options: Any = None) -> Any:
    here = SingleDeviceSharding(device)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), inputs
    )  # fmt: skip
    return jitted.lower(*shapes).compile(options)
