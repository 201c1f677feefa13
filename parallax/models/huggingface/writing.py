"""Saving parameters as a folder that other libraries load."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from parallax.models.config import ITEM_BYTES
from parallax.models.huggingface.configs import to_fields
from parallax.models.huggingface.families import pieces_of, sizes_of
from parallax.models.huggingface.fields import read_fields
from parallax.models.huggingface.files import INDEX, ONE
from parallax.models.huggingface.reading import Placed
from parallax.models.huggingface.tensors import Piece, shapes_of
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
) -> None:
    """Writes config.json and *.safetensors, in the model's own dtype.

    Args:
      folder: made here; it appears when it is complete.
      model: a `ShardedTransformer`.
      params: as it lays them out, in any sharding.
      tokenizer_from: a folder whose tokenizer files, and special tokens of config.json, are copied.
      max_file_bytes: of one file; a tensor that is larger gets one of its own.

    Raises:
      ValueError: the folder exists, or no family computes what this model does.

    Cost: the host holds one file's tensors at a time.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder}: exists. Give a folder that is not there yet.")
    fields = to_fields(model.config)
    files = _deal_out(model, max_file_bytes)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    leaves = {path: x.get_value() for path, x in nnx.to_flat_state(params)}
    rows = {int(layer): row for row, layer in enumerate(layers_in_place(model.groups))}
    sizes = sizes_of(model.config)
    weight_map = {}
    for number, names in enumerate(files):
        name = ONE if len(files) == 1 else f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        tensors = {
            tensor: np.concatenate([_whole(piece, leaves, rows, sizes) for piece in parts], axis=-1)
            for tensor, parts in names.items()
        }
        save_file(
            {n: np.ascontiguousarray(x) for n, x in tensors.items()}, partial / name,
            metadata={"format": "pt"},
        )  # fmt: skip
        weight_map |= dict.fromkeys(tensors, name)
    if len(files) > 1:
        size = model.config.num_params * ITEM_BYTES[model.config.dtype]
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (partial / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    if tokenizer_from is not None:
        fields |= _copy_tokenizer(Path(tokenizer_from), partial)
    (partial / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    partial.rename(folder)


def _copy_tokenizer(source: Path, target: Path) -> dict[str, Any]:
    """Copies tokenizer files; returns what config.json says of special tokens."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    if not (source / "config.json").is_file():
        return {}
    said = read_fields(source / "config.json", hint="").values
    return {name: said[name] for name in SPECIAL_TOKENS if name in said}


def _deal_out(model: Placed, max_file_bytes: int) -> list[dict[str, list[Piece]]]:
    """Files, each with its tensors by name, each of these with its parts in order."""
    pieces = pieces_of(model.config)
    shapes = shapes_of(pieces, sizes_of(model.config))
    parts: dict[str, list[Piece]] = {}
    for piece in sorted(pieces, key=lambda p: p.layout.part):
        parts.setdefault(piece.name, []).append(piece)
    files: list[dict[str, list[Piece]]] = [{}]
    room = max_file_bytes
    for name in shapes:
        size = math.prod(shapes[name]) * ITEM_BYTES[model.config.dtype]
        if size > room and files[-1]:
            files.append({})
            room = max_file_bytes
        files[-1][name] = parts[name]
        room -= size
    return files


def _whole(piece: Piece, leaves: dict, rows: dict[int, int], sizes: dict[str, int]) -> np.ndarray:
    """One piece as its tensor (or its part of one) is stored."""
    at = piece.at
    if piece.leaf[0] == "layers":
        at = (rows[at[0]], *at[1:])
    found = np.asarray(jax.device_get(leaves[piece.leaf][at]))
    real = tuple(slice(0, sizes[d]) for d in piece.layout.ours)
    return piece.layout.put(found[real], sizes)
