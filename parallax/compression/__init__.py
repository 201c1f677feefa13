"""The quantization and sparsity of weights: INT8, grouped INT4, N:M sparsity, and combinations.

This package knows no model and no mesh: weights are arrays, and a format says how one is stored.
"""

from parallax.compression.formats import FORMATS, Format, parse_format
from parallax.compression.packed import (
    Packed,
    check_packed,
    check_shapes,
    compress,
    decompress,
)

__all__ = [
    "FORMATS",
    "Format",
    "Packed",
    "check_packed",
    "check_shapes",
    "compress",
    "decompress",
    "parse_format",
]
