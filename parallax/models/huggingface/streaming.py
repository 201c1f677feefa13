"""The writer of safetensors files one tensor at a time; the library's own needs all at once."""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from parallax.models.config import ITEM_BYTES, DType

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ALIGNED = 8  # bytes


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, DType],
    tensor: Callable[[str], np.ndarray],
) -> None:
    """Write a whole safetensors file, with the same bytes as the library's writer.

    Args:
      path: the file.
      shapes: name -> shape of every tensor.
      dtypes: name -> dtype.
      tensor: makes a tensor by its name; called once for each, after the previous one is written.
    """
    offset = 0
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name in sorted(shapes):
        size = math.prod(shapes[name]) * ITEM_BYTES[dtypes[name]]
        header[name] = {
            "dtype": _NAMES[dtypes[name]], "shape": list(shapes[name]),
            "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(shapes):
            x = np.ascontiguousarray(tensor(name))
            assert x.shape == shapes[name], (name, x.shape, shapes[name])
            assert x.dtype.name == dtypes[name], (name, x.dtype, dtypes[name])
            file.write(x.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
