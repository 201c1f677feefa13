"""Compressed weights as a folder: one safetensors file a layer, one for the rest, compressed.json.

Arrays are stored as they lie on devices, bit for bit; a layer's file can be read alone.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from parallax.compression.packed import check_positions, check_scales
from parallax.models.compressing import packed_weights
from parallax.models.config import ModelConfig
from parallax.models.huggingface.files import TensorFiles, check_names, read_headers
from parallax.models.huggingface.reading import Placed, on_devices
from parallax.models.huggingface.tensors import Index
from parallax.models.huggingface.writing import begin_folder, copy_tokenizer, on_host
from parallax.models.transformer import abstract_transformer
from parallax.parallel.stage_layers import layers_in_place

FILE = "compressed.json"
_KIND, _VERSION = "parallax compressed weights", 1
_REST = "rest.safetensors"


def save_compressed(
    folder: str | Path, model: Placed, params: nnx.State, *, tokenizer_from: Path | None = None
) -> None:
    """Writes parameters of a config with `compression`.

    Args:
      folder: made here; it appears when it is complete.
      model: a `ShardedTransformer`.
      params: as it lays them out, in any sharding.
      tokenizer_from: a folder whose tokenizer files are copied.

    Raises:
      ValueError: the folder exists, nothing is compressed, other processes hold part of it.

    Cost: the host holds one layer at a time.
    """
    from safetensors.numpy import save_file

    if model.config.compression is None:
        raise ValueError(
            f"{folder}: model '{model.config.name}' is not compressed. Use px.huggingface.save."
        )
    partial = begin_folder(folder, params)
    rows = {int(layer): row for row, layer in enumerate(layers_in_place(model.groups))}
    leaves = dict(nnx.to_flat_state(params))
    shapes = _shapes(model.config)
    files: dict[str, dict[str, np.ndarray]] = {_REST: {}}
    for path in (p for p in leaves if p[0] != "layers"):
        real = tuple(slice(0, n) for n in shapes[path].shape)
        # The library writes memory as it lies, whatever the strides.
        files[_REST][_name(path)] = np.ascontiguousarray(_whole(leaves[path], ())[real])
    save_file(files[_REST], partial / _REST)
    for layer in range(model.config.num_layers):
        stacked = (p for p in leaves if p[0] == "layers")
        found = {_name(p, layer): _whole(leaves[p], (rows[layer],)) for p in stacked}
        save_file(found, partial / _file(layer))
    if tokenizer_from is not None:
        copy_tokenizer(Path(tokenizer_from), partial)
    said = {"kind": _KIND, "version": _VERSION, "model": model.config.to_dict()}
    (partial / FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    partial.rename(folder)


def read_compressed_config(folder: str | Path) -> ModelConfig:
    """The model of a folder.

    Raises:
      ValueError: not a folder of compressed weights that this version reads.
    """
    path = Path(folder) / FILE
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}.") from None
    if not isinstance(said, dict) or said.get("kind") != _KIND or said.get("version") != _VERSION:
        raise ValueError(f"{path}: not {_KIND} of version {_VERSION}.")
    config = ModelConfig.from_dict(said.get("model"), str(path))
    if config.compression is None:
        raise ValueError(f"{path}: its model names no compression.")
    return config


def load_compressed(folder: str | Path, model: Placed, mesh) -> nnx.State:
    """Parameters under a strategy, each device's shards read from the files.

    Args:
      folder: of `save_compressed`.
      model: a `ShardedTransformer` of the folder's own config.
      mesh: real or virtual devices.

    Raises:
      ValueError: another model's folder; tensors missing, unexpected, of another shape or dtype;
        positions or scales that are damaged.
    """
    folder = Path(folder)
    own, asked = read_compressed_config(folder), model.config
    if own.replace(name=asked.name) != asked:
        differ = [k for k, v in own.to_dict().items() if v != asked.to_dict()[k] and k != "name"]
        raise ValueError(
            f"{folder}: stored for another model: {', '.join(differ)} differ. Compressed weights "
            "run in the dtype and formats they were stored in."
        )
    files = _find(folder, own)
    weights = packed_weights(own)
    rows = layers_in_place(model.groups)
    specs = dict(nnx.to_flat_state(model.specs))

    def leaf(path, like):
        sharding = NamedSharding(mesh, specs[path].get_value())
        read = _Shards(files, path, rows, weights)
        return like.replace(on_devices(like.get_value(), sharding, read))

    return nnx.from_flat_state(
        [(path, leaf(path, like)) for path, like in nnx.to_flat_state(model.shapes)]
    )


class _Shards:
    """Reads slices of one array, checked."""

    def __init__(self, files: TensorFiles, path: tuple, rows: np.ndarray, weights: dict):
        self.files, self.path, self.rows = files, path, rows
        self.packed = weights.get(path[:-1])

    def shard(self, index: Index, dtype) -> np.ndarray:
        out = np.zeros([s.stop - s.start for s in index], dtype)
        if self.path[0] != "layers":
            shape = self.files.shapes[_name(self.path)]
            real = tuple(
                slice(min(s.start, n), min(s.stop, n)) for s, n in zip(index, shape, strict=True)
            )
            found = self.files.read(_name(self.path), real)
            out[tuple(slice(0, n) for n in found.shape)] = found
            return out
        for at, row in enumerate(range(index[0].start, index[0].stop)):
            layer = int(self.rows[row])
            if layer >= 0:  # else one of zeros, which fills up a stage
                out[at] = self._checked(_name(self.path, layer), index[1:])
        return out

    def _checked(self, name: str, index: Index) -> np.ndarray:
        found = self.files.read(name, index)
        where = f"{self.files.folder}: {name}"
        if self.packed is not None and self.path[-1] == "scales":
            check_scales(found, where)
        if self.packed is not None and self.path[-1] == "positions":
            check_positions(found, self.packed.form, self.packed.inputs[-1], where)
        return found


def _find(folder: Path, config: ModelConfig) -> TensorFiles:
    names = []
    for layer in range(-1, config.num_layers):  # compressed.json may claim any number of them
        names.append(_REST if layer < 0 else _file(layer))
        if not (folder / names[-1]).is_file():
            raise ValueError(f"{folder}: {names[-1]} is missing. Fetch the folder again.")
    files = read_headers(folder, [folder / name for name in names])
    expected: dict[str, Any] = {}
    for path, like in _shapes(config).items():
        if path[0] == "layers":
            one = jax.ShapeDtypeStruct(like.shape[1:], like.dtype)
            expected |= {_name(path, layer): one for layer in range(config.num_layers)}
        else:
            expected[_name(path)] = like
    check_names(files, {n: tuple(x.shape) for n, x in expected.items()}, (), floats=False)
    for name, like in expected.items():
        if _DTYPES.get(files.dtypes[name]) != like.dtype.name:
            raise ValueError(
                f"{folder}: {name} is {files.dtypes[name]}, its format stores {like.dtype.name}. "
                "The files do not belong to this compressed.json."
            )
    return files


_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8",
    "U8": "uint8",
}  # fmt: skip


def _shapes(config: ModelConfig) -> dict[tuple, jax.ShapeDtypeStruct]:
    return {path: x.get_value() for path, x in nnx.to_flat_state(abstract_transformer(config)[1])}


def _whole(variable: nnx.Variable, at: tuple[int, ...]) -> np.ndarray:
    x = variable.get_value()
    return on_host(x, at, x.dtype)


def _name(path: tuple, layer: int | None = None) -> str:
    if layer is None:
        return "/".join(path)
    return "/".join((path[0], str(layer), *path[1:]))


def _file(layer: int) -> str:
    return f"layer-{layer:05}.safetensors"
