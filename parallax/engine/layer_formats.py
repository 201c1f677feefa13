"""Formats of every layer: parsed from flags, checked, and applied to a layer's weights."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from parallax.models.compressing import compress_params, layer_config
from parallax.models.config import ModelConfig
from parallax.placement import layer_footprints

Formats = tuple[str, str]  # the attention matrices' format, and the MLP's
_LAYERS = re.compile(r"(\d+)(?:-(\d+))?=([^,=]+)(?:,([^,=]+))?")


@functools.lru_cache(maxsize=64)
def _storing(config: ModelConfig) -> Any:
    return jax.jit(functools.partial(compress_params, config=config))


def store_layer(config: ModelConfig, dense: nnx.State, formats: Formats) -> nnx.State:
    """Store one layer's weights in these formats.

    Args:
      config: the whole model.
      dense: the layer's parameters, each with a leading dim of 1.
    """
    one = layer_config(config, formats)
    if one.compression is None:
        return dense
    return _storing(one)(nnx.State({"layers": dense}))["layers"]


def check_formats(
    config: ModelConfig, formats: str | Sequence[Formats] | None
) -> tuple[Formats, ...]:
    """Return the formats of every layer; None stands for the model's own dtype.

    Raises:
      ValueError: their number is not that of the layers, or a format is unknown or does not divide
        a size.
    """
    if formats is None:
        formats = config.dtype
    if isinstance(formats, str):
        formats = ((formats, formats),) * config.num_layers
    pairs = tuple((attention, mlp) for attention, mlp in formats)
    layer_footprints(config, pairs)
    for pair in dict.fromkeys(pairs):
        layer_config(config, pair)
    return pairs


def parse_layer_formats(
    config: ModelConfig, texts: Sequence[str], every: Formats | None = None
) -> tuple[Formats, ...]:
    """Parse `LAYERS=FORMAT` or `LAYERS=ATTENTION,MLP` for every layer; later texts win.

    Args:
      config: the model.
      texts: LAYERS is a number or first-last, such as 0-3=int8,int8+2:4.
      every: formats of layers that no text names; None takes the model's dtype.

    Raises:
      ValueError: another grammar, or a layer that the model does not have.
    """
    formats = [every or (config.dtype, config.dtype)] * config.num_layers
    for text in texts:
        match = _LAYERS.fullmatch(text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if match is None or not first <= last < config.num_layers:
            raise ValueError(
                f"layer formats {text!r}: expected LAYERS=FORMAT or LAYERS=ATTENTION,MLP with "
                f"LAYERS a number or first-last from 0 to {config.num_layers - 1}, such as "
                "0-3=int8,int8+2:4."
            )
        pair = (match[3], match[4] or match[3])
        formats[first : last + 1] = [pair] * (last + 1 - first)
    return check_formats(config, formats)
