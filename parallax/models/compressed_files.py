"""The compressed weights of one program, saved from any sharding and loaded into any.

Arrays are stored bit for bit as devices hold them; `compressed_folder` has the layout.
"""

from pathlib import Path

import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from parallax.models.compressed_folder import (
    FILE,
    StoredModel,
    find_tensors,
    read_checked,
    read_stored,
    shapes,
    tensor_name,
    write_stored,
)
from parallax.models.compressing import packed_weights
from parallax.models.config import ModelConfig
from parallax.models.huggingface.files import TensorFiles
from parallax.models.huggingface.reading import Placed, on_devices
from parallax.models.huggingface.tensors import Index
from parallax.models.huggingface.writing import on_host
from parallax.parallel.stage_layers import layers_in_place


def save_compressed(
    folder: str | Path, model: Placed, params: nnx.State, *, tokenizer_from: Path | None = None
) -> None:
    """Write the parameters of a model with `compression`.

    Args:
      folder: the folder to make; it appears when it is complete.
      model: a `ShardedTransformer`.
      params: the model's parameters, in any sharding.
      tokenizer_from: a folder whose tokenizer files are copied.

    Raises:
      ValueError: the folder exists, nothing is compressed, or other processes hold part of it.

    Cost: the host holds one layer at a time.
    """
    config = model.config
    if config.compression is None:
        raise ValueError(
            f"{folder}: model '{config.name}' is not compressed. Use px.huggingface.save."
        )
    rows = {
        int(layer): row for row, layer in enumerate(layers_in_place(model.groups, model.chunks))
    }
    leaves, sizes = dict(nnx.to_flat_state(params)), shapes(config)

    def layer(number: int) -> dict[str, np.ndarray]:
        stacked = (p for p in leaves if p[0] == "layers")
        return {tensor_name(p, number): _whole(leaves[p], (rows[number],)) for p in stacked}

    def rest() -> dict[str, np.ndarray]:
        arrays = {}
        for path in (p for p in leaves if p[0] != "layers"):
            real = tuple(slice(0, n) for n in sizes[path].shape)
            # The library writes raw memory and ignores strides.
            arrays[tensor_name(path)] = np.ascontiguousarray(_whole(leaves[path], ())[real])
        return arrays

    stored = StoredModel(config, (config.compression,) * config.num_layers)
    layers = (layer(number) for number in range(config.num_layers))
    write_stored(folder, stored, params, rest, layers, tokenizer_from)


def read_compressed_config(folder: str | Path) -> ModelConfig:
    """Return the model of a folder, for one program.

    Raises:
      ValueError: not a folder of compressed weights that this version reads, or one whose layers
        have different formats.
    """
    stored = read_stored(folder)
    if stored.mixed:
        raise ValueError(
            f"{Path(folder) / FILE}: its layers have {len(set(stored.formats))} different formats, "
            "and all layers of one program have the same. Use parallax deploy (px.Deployment)."
        )
    return stored.config


def load_compressed(folder: str | Path, model: Placed, mesh) -> nnx.State:
    """Load parameters under a strategy; each device's shards are read from the files.

    Args:
      folder: a folder that `save_compressed` wrote.
      model: a `ShardedTransformer` of the folder's own config.
      mesh: real or virtual devices.

    Raises:
      ValueError: another model's folder; tensors that are missing, unexpected or of another shape
        or dtype; damaged positions or scales; layers of different formats.
    """
    folder = Path(folder)
    own, asked = read_compressed_config(folder), model.config
    if own.replace(name=asked.name) != asked:
        differ = [k for k, v in own.to_dict().items() if v != asked.to_dict()[k] and k != "name"]
        raise ValueError(
            f"{folder}: stored for another model: {', '.join(differ)} differ. Compressed weights "
            "run in the dtype and formats they were stored in."
        )
    files = find_tensors(folder, read_stored(folder))
    weights = packed_weights(own)
    rows = layers_in_place(model.groups, model.chunks)
    specs = dict(nnx.to_flat_state(model.specs))

    def leaf(path, like):
        sharding = NamedSharding(mesh, specs[path].get_value())
        read = _Shards(files, path, rows, weights)
        return like.replace(on_devices(like.get_value(), sharding, read))

    return nnx.from_flat_state(
        [(path, leaf(path, like)) for path, like in nnx.to_flat_state(model.shapes)]
    )


class _Shards:
    """The reader of one array's slices, which checks them."""

    def __init__(self, files: TensorFiles, path: tuple, rows: np.ndarray, weights: dict):
        self.files, self.path, self.rows = files, path, rows
        self.packed = weights.get(path[:-1])

    def shard(self, index: Index, dtype) -> np.ndarray:
        out = np.zeros([s.stop - s.start for s in index], dtype)
        if self.path[0] != "layers":
            shape = self.files.shapes[tensor_name(self.path)]
            real = tuple(
                slice(min(s.start, n), min(s.stop, n)) for s, n in zip(index, shape, strict=True)
            )
            x = self.files.read(tensor_name(self.path), real)
            out[tuple(slice(0, n) for n in x.shape)] = x
            return out
        for at, row in enumerate(range(index[0].start, index[0].stop)):
            layer = int(self.rows[row])
            if layer >= 0:  # otherwise a layer of zeros, which pads a stage
                name = tensor_name(self.path, layer)
                which = self.path[-1]
                out[at] = read_checked(self.files, name, index[1:], self.packed, which)
        return out


def _whole(variable: nnx.Variable, at: tuple[int, ...]) -> np.ndarray:
    x = variable.get_value()
    return on_host(x, at, x.dtype)
