"""The writing of files with 8-bit floats, which the library's writer for NumPy lacks."""

import json

import numpy as np

_KINDS = {"float8_e4m3fn": "F8_E4M3", "float32": "F32", "uint8": "U8"}


def write_tensors(path, tensors):
    """Write a whole file of tensors by name."""
    header, data = {}, b""
    for name, x in tensors.items():
        raw = np.ascontiguousarray(x).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        kind = _KINDS[x.dtype.name]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
