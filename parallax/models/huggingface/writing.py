"""The saving of parameters as a folder that other libraries load."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from parallax.models.config import ITEM_BYTES, DType
from parallax.models.huggingface.configs import to_fields
from parallax.models.huggingface.families import FAMILIES
from parallax.models.huggingface.fields import read_fields
from parallax.models.huggingface.files import INDEX, ONE
from parallax.models.huggingface.names import sizes_of
from parallax.models.huggingface.reading import Placed
from parallax.models.huggingface.streaming import write_tensors
from parallax.models.huggingface.tensors import Piece, shapes_of
from parallax.models.new_folder import new_folder
from parallax.parallel.stage_layers import layers_in_place

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
)  # fmt: skip
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def save(
    folder: str | Path,
    model: Placed,
    params: nnx.State,
    *,
    tokenizer_from: str | Path | None = None,
    max_file_bytes: int = 4_000_000_000,
    family: str | None = None,
) -> None:
    """Write config.json and *.safetensors, in the model's own dtype, never quantized.

    Args:
      folder: the folder to make; it appears when it is complete.
      model: a `ShardedTransformer`.
      params: the model's parameters, in any sharding; wider ones, as in training, are rounded.
      tokenizer_from: a folder whose tokenizer files, and special tokens of config.json, are copied.
      max_file_bytes: the most bytes per file; a larger tensor gets a file of its own.
      family: the model_type to write (`parallax list families`); None is the first that computes
        the same, Llama for a Phi-4.

    Raises:
      ValueError: the folder exists or cannot be written, no family (or not this one) computes the
        same as this model, or other processes hold part of the parameters.

    Cost: besides the arrays on devices, the host holds one tensor at a time.
    """
    fields = to_fields(model.config, family)
    pieces = list(FAMILIES[fields["model_type"]].tensors(model.config))
    shapes = shapes_of(pieces, sizes_of(model.config))
    leaves = dict(nnx.to_flat_state(model.shapes))
    dtypes = {p.name: leaves[p.leaf].get_value().dtype.name for p in pieces}
    sizes = {n: math.prod(shape) * ITEM_BYTES[dtypes[n]] for n, shape in shapes.items()}
    files = _deal_out(sizes, max_file_bytes)
    with new_folder(folder, params) as partial:
        tensor = _Tensors(model, params, pieces, dtypes)
        weight_map = {}
        for number, names in enumerate(files):
            count = len(files)
            name = ONE if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
            write_tensors(partial / name, {n: shapes[n] for n in names}, dtypes, tensor)
            weight_map |= dict.fromkeys(names, name)
        if len(files) > 1:
            total = {"total_size": sum(sizes.values())}
            index = {"metadata": total, "weight_map": weight_map}
            (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        if tokenizer_from is not None:
            fields |= copy_tokenizer(Path(tokenizer_from), partial)
        (partial / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path, target: Path) -> dict[str, Any]:
    """Copy tokenizer files, and return the special tokens of config.json."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    if not (source / "config.json").is_file():
        return {}
    fields = read_fields(source / "config.json", hint="").values
    return {name: fields[name] for name in SPECIAL_TOKENS if name in fields}


def _deal_out(sizes: Mapping[str, int], max_file_bytes: int) -> list[list[str]]:
    """Return the names of each file's tensors, of which `sizes` has the bytes."""
    files: list[list[str]] = [[]]
    room = max_file_bytes
    for name, size in sizes.items():
        if size > room and files[-1]:
            files.append([])
            room = max_file_bytes
        files[-1].append(name)
        room -= size
    return files


class _Tensors:
    """The maker of a folder's tensors from the parameters' shards."""

    def __init__(
        self, model: Placed, params: nnx.State, pieces: Sequence[Piece], dtypes: dict[str, DType]
    ):
        self.sizes = sizes_of(model.config)
        self.dtypes = dtypes
        self.leaves = {path: x.get_value() for path, x in nnx.to_flat_state(params)}
        rows = layers_in_place(model.groups, model.chunks)
        self.rows = {int(layer): row for row, layer in enumerate(rows)}
        self.parts: dict[str, list[Piece]] = {}
        for piece in sorted(pieces, key=lambda p: p.layout.part):
            self.parts.setdefault(piece.name, []).append(piece)

    def __call__(self, name: str) -> np.ndarray:
        parts = [self._part(piece) for piece in self.parts[name]]
        return self.parts[name][0].layout.join(parts, self.sizes)

    def _part(self, piece: Piece) -> np.ndarray:
        at = piece.at
        if piece.leaf[0] == "layers":
            at = (self.rows[at[0]], *at[1:])
        real = tuple(slice(0, self.sizes[d]) for d in piece.layout.ours)
        x = on_host(self.leaves[piece.leaf], at, self.dtypes[piece.name])
        return piece.layout.put(x[real], self.sizes)


def on_host(x: jax.Array, at: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Return x[at] on the host, assembled from shards; no device receives any data."""
    out = np.empty(x.shape[len(at) :], dtype)
    for shard in x.addressable_shards:
        index = [slice(*s.indices(n)[:2]) for s, n in zip(shard.index, x.shape, strict=True)]
        inside = all(s.start <= i < s.stop for i, s in zip(at, index, strict=False))
        if shard.replica_id or not inside:
            continue
        local = tuple(i - s.start for i, s in zip(at, index, strict=False))
        out[tuple(index[len(at) :])] = np.asarray(shard.data[local])
    return out
