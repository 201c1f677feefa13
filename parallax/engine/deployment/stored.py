"""Weights as devices hold them: one layer at a time, in its own formats, with host copies."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from parallax.models.compressing import compress_params
from parallax.models.config import ModelConfig
from parallax.models.transformer import abstract_transformer
from parallax.placement import layer_footprints

Formats = tuple[str, str]  # of the attention's matrices, and of the MLP's
_LAYERS = re.compile(r"(\d+)(?:-(\d+))?=([^,=]+)(?:,([^,=]+))?")
_FIRST = ("tokens_VD", "positions_LD")
_LAST = ("final_norm", "unembed_DV")


def layer_config(config: ModelConfig, formats: Formats) -> ModelConfig:
    """The model with one layer, whose matrices have these formats.

    Raises:
      ValueError: sizes that a format cannot have.
    """
    dense = formats == (config.dtype, config.dtype)
    return config.replace(num_layers=1, compression=None if dense else formats)


@functools.lru_cache(maxsize=64)
def _storing(config: ModelConfig) -> Any:
    return jax.jit(functools.partial(compress_params, config=config))


def store_layer(config: ModelConfig, dense: nnx.State, formats: Formats) -> nnx.State:
    """One layer's weights in these formats.

    Args:
      config: the whole model.
      dense: the layer's parameters, each with a leading dim of 1.
    """
    one = layer_config(config, formats)
    if one.compression is None:
        return dense
    return _storing(one)(nnx.State({"layers": dense}))["layers"]


@dataclasses.dataclass(frozen=True, eq=False)
class HostCopies:
    """The model on the host: where lost weights come from.

    Attributes:
      config: the model.
      dense: its parameters as NumPy arrays, layers stacked.
      layers: (layer, formats) -> that layer as a device holds it, NumPy arrays.
    """

    config: ModelConfig
    dense: nnx.State
    layers: dict[tuple[int, Formats], Any]

    @classmethod
    def of(cls, config: ModelConfig, params: nnx.State) -> "HostCopies":
        """Copies parameters to the host."""
        return cls(config, jax.tree.map(np.asarray, params), {})

    def layer(self, number: int, formats: Formats) -> Any:
        """One layer in these formats; the first time it is compressed.

        Raises:
          ValueError: sizes that the format cannot have.
        """
        key = (number, formats)
        if key not in self.layers:
            one = jax.tree.map(lambda w: w[number : number + 1], self.dense["layers"])
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                stored = store_layer(self.config, one, formats)
            self.layers[key] = jax.tree.map(np.asarray, stored)
        return self.layers[key]

    def end(self, which: str) -> nnx.State:
        """What the "first" or the "last" device of the chain has beside its layers."""
        return nnx.State({name: self.dense[name] for name in end_names(self.config, which)})

    @property
    def n_bytes(self) -> int:
        """Of all copies; a layer in the model's dtype is a view of them."""
        own = (self.config.dtype, self.config.dtype)
        packed = [layer for (_, formats), layer in self.layers.items() if formats != own]
        return sum(x.nbytes for x in jax.tree.leaves((self.dense, packed)))


def end_names(config: ModelConfig, which: str) -> tuple[str, ...]:
    """Parameters of the "first" device (tables) or of the "last" (norm and unembedding)."""
    shapes = abstract_transformer(config)[1]
    if which == "first":
        return tuple(name for name in _FIRST if name in shapes)
    tied = ("tokens_VD",) if config.tie_embeddings else ()
    return tuple(name for name in (*_LAST, *tied) if name in shapes)


def end_bytes(config: ModelConfig, which: str) -> int:
    """Of these parameters."""
    shapes = abstract_transformer(config)[1]
    leaves = jax.tree.leaves([shapes[name] for name in end_names(config, which)])
    return sum(x.size * x.dtype.itemsize for x in leaves)


def check_formats(
    config: ModelConfig, formats: str | Sequence[Formats] | None
) -> tuple[Formats, ...]:
    """Formats of every layer; None is the model's own dtype.

    Raises:
      ValueError: as many as there are no layers, unknown ones, or sizes that they cannot have.
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
    """Formats of every layer from `LAYERS=FORMAT` or `LAYERS=ATTENTION,MLP`, later ones winning.

    Args:
      config: the model.
      texts: LAYERS is a number or first-last, such as 0-3=int8,int8+2:4.
      every: of layers that no text names; None is the model's dtype.

    Raises:
      ValueError: anything else, or layers that the model does not have.
    """
    found = [every or (config.dtype, config.dtype)] * config.num_layers
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
        found[first : last + 1] = [pair] * (last + 1 - first)
    return check_formats(config, found)
