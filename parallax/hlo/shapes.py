"""The shapes in HLO text, and their bytes."""

import math
import re
from dataclasses import dataclass, field

from parallax.hlo.limits import (
    MAX_DIGITS,
    MAX_ELEMENTS,
    MAX_NESTED_TUPLES,
    MAX_RANK,
    short,
)

_BITS = {
    "pred": 8, "s2": 2, "s4": 4, "s8": 8, "s16": 16, "s32": 32, "s64": 64,
    "u2": 2, "u4": 4, "u8": 8, "u16": 16, "u32": 32, "u64": 64,
    "f4e2m1fn": 4, "f8e3m4": 8, "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3fnuz": 8, "f8e4m3b11fnuz": 8,
    "f8e5m2": 8, "f8e5m2fnuz": 8, "f8e8m0fnu": 8, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^{}]*\}|)")
_COMMENT = re.compile(r"/\*.*?\*/")


class HloError(ValueError):
    """An error for HLO text that is not understood, of which nothing was counted."""


@dataclass(frozen=True)
class Shape:
    """An array's dtype (HLO name) and dims, or a tuple of shapes (dtype "tuple").

    `on_host` is whether the layout puts the array in the host's memory.
    """

    dtype: str
    dims: tuple[int, ...] = ()
    elements: tuple["Shape", ...] = ()
    on_host: bool = field(default=False, compare=False)

    @property
    def host_bytes(self) -> int:
        """The bytes of the array, or of all arrays in the tuple, in the host's memory."""
        if self.dtype == "tuple":
            return sum(e.host_bytes for e in self.elements)
        return self.n_bytes if self.on_host else 0

    @property
    def n_bytes(self) -> int:
        """The bytes of the array, or of all arrays in the tuple."""
        if self.dtype == "tuple":
            return sum(e.n_bytes for e in self.elements)
        return -(-math.prod(self.dims) * _BITS[self.dtype] // 8)


def parse_shape(text: str) -> Shape:
    """Parse one shape, such as `f16[16,625]{1,0}` or `(f32[], s32[4])`.

    Raises:
      HloError: the text is not a shape, or has an unknown dtype.
    """
    text = _COMMENT.sub("", text).strip()
    shape, end = _shape_at(text, 0)
    if text[end:].strip():
        raise HloError(
            f"shape {short(text)}: expected the end at column {end}, got {short(text[end:])}."
        )
    return shape


def _shape_at(text: str, start: int, depth: int = 0) -> tuple[Shape, int]:
    if depth > MAX_NESTED_TUPLES:
        raise HloError(f"shape {short(text)}: over {MAX_NESTED_TUPLES} tuples in each other.")
    if text.startswith("(", start):
        elements, at = [], start + 1
        while True:
            while text[at : at + 1] == " ":
                at += 1
            if text.startswith(")", at):
                return Shape("tuple", (), tuple(elements)), at + 1
            if elements:
                if not text.startswith(",", at):
                    raise HloError(f"shape {short(text)}: expected ',' or ')' at column {at}.")
                at += 1
                while text[at : at + 1] == " ":
                    at += 1
            element, at = _shape_at(text, at, depth + 1)
            elements.append(element)
    match = _ARRAY.match(text, start)
    if match is None:
        raise HloError(f"shape {short(text)}: expected dtype[dims] at column {start}.")
    dtype, dims, layout = match.groups()
    if dtype not in _BITS:
        raise HloError(f"shape {short(text)}: unknown dtype {dtype!r}.")
    parts = dims.split(",") if dims else []
    if len(parts) > MAX_RANK:
        raise HloError(f"shape {short(text)}: {len(parts)} dims, expected {MAX_RANK} at most.")
    if any(not part or len(part) > MAX_DIGITS for part in parts):
        raise HloError(f"shape {short(text)}: dims {short(dims)} are not 64-bit integers.")
    sizes = tuple(int(part) for part in parts)
    if math.prod(size or 1 for size in sizes) > MAX_ELEMENTS:
        raise HloError(f"shape {short(text)}: over {MAX_ELEMENTS} elements.")
    return Shape(dtype, sizes, on_host="S(5)" in layout), match.end()
