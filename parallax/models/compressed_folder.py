"""The layout of a folder of compressed weights: its files, their names and their contents.

A folder has one safetensors file per layer, one for the rest, and compressed.json. Every layer may
have its own formats, and its file can be read alone.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from flax import nnx

from parallax.codec import FileFormat, later
from parallax.compression.packed import check_positions, check_scales
from parallax.models.compressing import layer_config, packed_weights
from parallax.models.config import ModelConfig
from parallax.models.huggingface.files import TensorFiles, check_names, read_headers
from parallax.models.huggingface.tensors import Index
from parallax.models.huggingface.writing import copy_tokenizer
from parallax.models.new_folder import new_folder
from parallax.models.packed_weight import PackedWeight
from parallax.models.transformer import abstract_transformer

FILE = "compressed.json"
_KIND: Literal["parallax compressed weights"] = "parallax compressed weights"
_REST = "rest.safetensors"
Arrays = Mapping[str, np.ndarray]
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8",
    "U8": "uint8",
}  # fmt: skip


@dataclass(frozen=True)
class StoredModel:
    """The contents of compressed.json: a model, and how its layers are stored.

    Attributes:
      config: the model; its `compression` is None if layers have different formats.
      formats: the formats of every layer's attention and MLP.
    """

    config: ModelConfig
    formats: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, config: ModelConfig, formats: Iterable[tuple[str, str]]) -> "StoredModel":
        """Return a dense model with these formats.

        Raises:
          ValueError: sizes that a format cannot store, or formats that are all the model's dtype.
        """
        pairs = tuple((attention, mlp) for attention, mlp in formats)
        config = config.replace(compression=None)
        if set(pairs) == {(config.dtype, config.dtype)}:
            raise ValueError(
                f"model '{config.name}': all formats are its own {config.dtype}, nothing is "
                "compressed. Give a smaller format to at least one layer."
            )
        for pair in dict.fromkeys(pairs):
            layer_config(config, pair)
        one = pairs[0] if len(set(pairs)) == 1 else None
        return cls(config.replace(compression=one), pairs)

    @property
    def mixed(self) -> bool:
        """Whether layers have different formats."""
        return self.config.compression is None

    def layer_model(self, layer: int) -> ModelConfig:
        """Return the model with this layer alone, as it is stored."""
        if self.mixed:
            return layer_config(self.config, self.formats[layer])
        return self.config.replace(num_layers=1)


@dataclass(frozen=True)
class _FileFields:
    """The fields of compressed.json; `layers` has each layer's formats if they differ."""

    kind: Literal["parallax compressed weights"]
    model: ModelConfig
    layers: tuple[tuple[str, str], ...] | None = later(None, omit=True)


_FORMAT = FileFormat(
    _FileFields, _KIND, "version", 1, "Compress the model again with this version."
)


def read_stored(folder: str | Path) -> StoredModel:
    """Return the model of a folder, and its formats.

    Raises:
      ValueError: not a folder of compressed weights that this version reads.
    """
    path = Path(folder) / FILE
    fields = _FORMAT.load(path)
    config, pairs = fields.model, fields.layers
    if pairs is None:
        if config.compression is None:
            raise ValueError(f"{path}: its model names no compression.")
        return StoredModel(config, (config.compression,) * config.num_layers)
    if config.compression is not None or len(pairs) != config.num_layers:
        raise ValueError(
            f"{path}: layers must be [attention, mlp] formats of each of {config.num_layers} "
            "layers, in place of the model's compression. The file is damaged."
        )
    try:
        return StoredModel.of(config, pairs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_stored(
    folder: str | Path,
    stored: StoredModel,
    params: nnx.State,
    rest: Callable[[], Arrays],
    layers: Iterable[Arrays],
    tokenizer_from: Path | None = None,
) -> None:
    """Write a folder, one layer at a time.

    Args:
      folder: the folder to make; it appears when it is complete.
      stored: the model.
      params: the parameters that the arrays are from; all of them have to be in this process.
      rest: returns the arrays outside the layers, keyed by `tensor_name`.
      layers: each layer's arrays, keyed by `tensor_name`.
      tokenizer_from: a folder whose tokenizer files are copied.

    Raises:
      ValueError: the folder exists or cannot be written, or other processes hold part of the
        parameters.
    """
    from safetensors.numpy import save_file

    with new_folder(folder, params) as partial:
        save_file(dict(rest()), partial / _REST)
        for layer, arrays in enumerate(layers):
            save_file(dict(arrays), partial / _layer_file(layer))
        if tokenizer_from is not None:
            copy_tokenizer(Path(tokenizer_from), partial)
        fields = _FileFields(_KIND, stored.config, stored.formats if stored.mixed else None)
        _FORMAT.save(fields, partial / FILE, indent=2)


def find_tensors(folder: str | Path, stored: StoredModel) -> TensorFiles:
    """Find all tensors of a folder, and check their names, shapes and dtypes.

    Raises:
      ValueError: files or tensors that are missing, unexpected or of another shape or dtype.
    """
    folder = Path(folder)
    layers = range(stored.config.num_layers)
    paths: list[Path] = []
    for name in itertools.chain([_REST], map(_layer_file, layers)):
        # One by one: compressed.json may claim any number of layers.
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: {name} is missing. Fetch the folder again.")
        paths.append(folder / name)
    files = read_headers(folder, paths)
    expected = {tensor_name(p): x for p, x in shapes(stored.config).items() if p[0] != "layers"}
    for layer in layers:
        for path, like in shapes(stored.layer_model(layer)).items():
            if path[0] == "layers":
                one = jax.ShapeDtypeStruct(like.shape[1:], like.dtype)
                expected[tensor_name(path, layer)] = one
    check_names(files, {n: tuple(x.shape) for n, x in expected.items()}, (), floats=False)
    for name, like in expected.items():
        if _DTYPES.get(files.dtypes[name]) != like.dtype.name:
            raise ValueError(
                f"{folder}: {name} is {files.dtypes[name]}, its format stores {like.dtype.name}. "
                f"The files do not belong to this {FILE}."
            )
    return files


def read_rest(files: TensorFiles, stored: StoredModel) -> nnx.State:
    """Read all parameters outside the layers, as NumPy arrays."""
    flat = nnx.to_flat_state(abstract_transformer(stored.config)[1])
    return nnx.from_flat_state([
        (path, like.replace(_whole(files, tensor_name(path), None, "")))
        for path, like in flat if path[0] != "layers"
    ])  # fmt: skip


def read_layer(files: TensorFiles, stored: StoredModel, layer: int) -> nnx.State:
    """Read one layer as it is stored, as NumPy arrays with a leading dim of 1.

    Raises:
      ValueError: damaged positions or scales.
    """
    one = stored.layer_model(layer)
    packed = packed_weights(one)

    def leaf(path, like):
        x = _whole(files, tensor_name(path, layer), packed.get(path[:-1]), path[-1])
        return like.replace(x[None])

    flat = nnx.to_flat_state(abstract_transformer(one)[1])
    leaves = [(path, leaf(path, like)) for path, like in flat if path[0] == "layers"]
    return nnx.from_flat_state(leaves)["layers"]


def _whole(files: TensorFiles, name: str, packed: PackedWeight | None, which: str) -> np.ndarray:
    return read_checked(files, name, tuple(slice(0, n) for n in files.shapes[name]), packed, which)


def read_checked(
    files: TensorFiles, name: str, index: Index, packed: PackedWeight | None, which: str
) -> np.ndarray:
    """Read a slice of a tensor, and check positions and scales.

    Args:
      files: the folder's tensors.
      name: the tensor.
      index: the slice.
      packed: the weight that the tensor belongs to; None if it is not compressed.
      which: the array of `packed` that the tensor holds.

    Raises:
      ValueError: damaged positions or scales.
    """
    x = files.read(name, index)
    context = f"{files.folder}: {name}"
    if packed is not None and which == "scales":
        check_scales(x, context)
    if packed is not None and which == "positions":
        check_positions(x, packed.form, packed.inputs[-1], context)
    return x


def shapes(config: ModelConfig) -> dict[tuple, jax.ShapeDtypeStruct]:
    """Return the shape of every parameter, keyed by path."""
    return {path: x.get_value() for path, x in nnx.to_flat_state(abstract_transformer(config)[1])}


def tensor_name(path: tuple, layer: int | None = None) -> str:
    """Return the tensor name in the files of a parameter, or of one layer's slice of it."""
    if layer is None:
        return "/".join(path)
    return "/".join((path[0], str(layer), *path[1:]))


def _layer_file(layer: int) -> str:
    return f"layer-{layer:05}.safetensors"
