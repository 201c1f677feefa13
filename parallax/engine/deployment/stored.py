"""Host copies of the weights, one layer at a time in the formats that devices hold."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from parallax.engine.layer_formats import Formats, store_layer
from parallax.models.compressed_folder import find_tensors, read_layer, read_rest, read_stored
from parallax.models.config import ModelConfig
from parallax.models.transformer import abstract_transformer

_FIRST = ("tokens_VD", "positions_LD")
_LAST = ("final_norm", "unembed_DV")


@dataclasses.dataclass(frozen=True, eq=False)
class HostCopies:
    """The copy of the model on the host that replaces lost weights.

    Attributes:
      config: the model, without `compression`.
      dense: its parameters as NumPy arrays, layers stacked; without the layers if they were
        compressed already.
      layers: (layer, formats) -> the layer as a device holds it, as NumPy arrays.
      stored: formats of every layer if they were compressed already; None if they were dense.
    """

    config: ModelConfig
    dense: nnx.State
    layers: dict[tuple[int, Formats], Any]
    stored: tuple[Formats, ...] | None = None

    @classmethod
    def of(cls, config: ModelConfig, params: nnx.State) -> "HostCopies":
        """Copy parameters to the host.

        Args:
          config, params: the model and its parameters, dense or compressed as `config` says.
        """
        held = jax.tree.map(np.asarray, params)
        if config.compression is None:
            return cls(config, held, {})
        pair, count = config.compression, config.num_layers
        paths = [
            {p for p, _ in nnx.to_flat_state(x)} for x in (held, abstract_transformer(config)[1])
        ]
        if paths[0] != paths[1]:
            raise ValueError(
                f"Deployment: model '{config.name}' is stored as {','.join(pair)}, and these "
                "parameters are not. Give a config without compression, dense parameters and "
                "formats=."
            )
        config = config.replace(compression=None)
        layers = {
            (i, pair): jax.tree.map(lambda w, i=i: w[i : i + 1], held["layers"])
            for i in range(count)
        }
        rest = nnx.State({name: held[name] for name in held if name != "layers"})
        return cls(config, rest, layers, (pair,) * count)

    @classmethod
    def load(cls, folder: str | Path) -> "HostCopies":
        """Read a folder that `px.compress` wrote; nothing is compressed again.

        Raises:
          ValueError: the folder is missing or damaged.
        """
        stored = read_stored(folder)
        files = find_tensors(folder, stored)
        layers = {(i, pair): read_layer(files, stored, i) for i, pair in enumerate(stored.formats)}
        config = stored.config.replace(compression=None)
        return cls(config, read_rest(files, stored), layers, stored.formats)

    def layer(self, number: int, formats: Formats) -> Any:
        """Return one layer in these formats, compressing it the first time.

        Raises:
          ValueError: the format does not divide a size, or is not the one in which it is stored.
        """
        key = (number, formats)
        if key not in self.layers:
            if self.stored is not None:
                raise ValueError(
                    f"Deployment: layer {number} is stored as {','.join(self.stored[number])}, "
                    f"not as {','.join(formats)}, and its dense weights are not at hand. Leave "
                    "out other formats, or deploy the dense model."
                )
            one = jax.tree.map(lambda w: w[number : number + 1], self.dense["layers"])
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                stored = store_layer(self.config, one, formats)
            self.layers[key] = jax.tree.map(np.asarray, stored)
        return self.layers[key]

    def end(self, which: str) -> nnx.State:
        """Return what the "first" or the "last" device of the chain holds beside its layers."""
        return nnx.State({name: self.dense[name] for name in end_names(self.config, which)})

    @property
    def n_bytes(self) -> int:
        """The bytes of all copies; a layer in the model's dtype is a view of the dense ones."""
        own = None if self.stored else (self.config.dtype, self.config.dtype)
        packed = [layer for (_, formats), layer in self.layers.items() if formats != own]
        return sum(x.nbytes for x in jax.tree.leaves((self.dense, packed)))


def end_names(config: ModelConfig, which: str) -> tuple[str, ...]:
    """Return the parameters of the "first" device (tables) or the "last" (norm, unembedding)."""
    shapes = abstract_transformer(config)[1]
    if which == "first":
        return tuple(name for name in _FIRST if name in shapes)
    tied = ("tokens_VD",) if config.tie_embeddings else ()
    return tuple(name for name in (*_LAST, *tied) if name in shapes)


def end_bytes(config: ModelConfig, which: str) -> int:
    """Return the bytes of the "first" or the "last" device's embedding or head parameters."""
    shapes = abstract_transformer(config)[1]
    leaves = jax.tree.leaves([shapes[name] for name in end_names(config, which)])
    return sum(x.size * x.dtype.itemsize for x in leaves)
