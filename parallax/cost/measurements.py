"""Published measurements of products, attention and collectives on GPUs, to fit and test against.

Figures only, each with the id of its source; `data/sources.toml` says who measured them, how, and
under which licence they were published.
"""

import csv
import functools
import hashlib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

DATA = Path(__file__).parent / "data"
GPUS = ("h100", "h200", "a100", "b200")
DTYPES = ("bfloat16", "float16", "tensorfloat32", "int8")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "p2p")
_TEST_SHARE = 0.4
_CHOICES = {"gpu": GPUS, "dtype": DTYPES, "kind": KINDS}


@dataclass(frozen=True)
class MeasuredGemm:
    """batch x [m, k] x [k, n] on one GPU.

    Attributes:
      source: id of `sources()`.
      gpu: kind of GPU, one of GPUS.
      dtype: of both operands, one of DTYPES.
      batch, m, n, k: sizes.
      seconds: of one product.
    """

    source: str
    gpu: str
    dtype: str
    batch: int
    m: int
    n: int
    k: int
    seconds: float

    @property
    def key(self) -> str:
        """The shape, for `is_test`."""
        return f"{self.batch},{self.m},{self.n},{self.k}"


@dataclass(frozen=True)
class MeasuredAttention:
    """softmax(Q K^T) V on one GPU, forward.

    Attributes:
      source, gpu, dtype: as in MeasuredGemm.
      batch: sequences.
      heads, kv_heads, head_dim: of Q, of K and V, and the width of each.
      q_len, kv_len: rows of Q and of K; q_len is 1 in decode.
      causal: whether a query sees no later key.
      seconds: of one call.
    """

    source: str
    gpu: str
    dtype: str
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    q_len: int
    kv_len: int
    causal: bool
    seconds: float

    @property
    def key(self) -> str:
        """The shape, for `is_test`."""
        return (
            f"{self.batch},{self.heads},{self.kv_heads},{self.head_dim},"
            f"{self.q_len},{self.kv_len},{str(self.causal).lower()}"
        )


@dataclass(frozen=True)
class MeasuredCollective:
    """One collective, or one send to a neighbour.

    Attributes:
      source, gpu: as in MeasuredGemm.
      nodes: machines that take part.
      devices: GPUs that take part, over all nodes.
      kind: one of KINDS.
      bytes: the whole array of all-reduce, the gathered array of all-gather, the input of
        reduce-scatter, one device's buffer of all-to-all, the message of p2p.
      seconds: of one collective.
    """

    source: str
    gpu: str
    nodes: int
    devices: int
    kind: str
    bytes: int
    seconds: float

    @property
    def key(self) -> str:
        """The shape, for `is_test`."""
        return f"{self.nodes},{self.devices},{self.kind},{self.bytes}"


def is_test(key: str) -> bool:
    """Whether a shape is held out of every fit: about 40 % of shapes.

    Depends on the shape alone, so one shape of two sources or dtypes lies on one side.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < _TEST_SHARE


@functools.lru_cache
def gemms() -> tuple[MeasuredGemm, ...]:
    """All products. Raises: see `read`."""
    return read(MeasuredGemm, DATA / "gemm.csv", sources())


@functools.lru_cache
def attentions() -> tuple[MeasuredAttention, ...]:
    """All attention calls. Raises: see `read`."""
    return read(MeasuredAttention, DATA / "attention.csv", sources())


@functools.lru_cache
def collectives() -> tuple[MeasuredCollective, ...]:
    """All collectives. Raises: see `read`."""
    return read(MeasuredCollective, DATA / "collectives.csv", sources())


@functools.lru_cache
def sources() -> Mapping[str, Mapping[str, str]]:
    """Who measured what: id to title, url, licence, authors, gpu, software, method, conversions."""
    tables = tomllib.loads((DATA / "sources.toml").read_text(encoding="utf-8"))
    return MappingProxyType({name: MappingProxyType(table) for name, table in tables.items()})


def read[Row: (MeasuredGemm, MeasuredAttention, MeasuredCollective)](
    kind: type[Row], path: Path, known_sources: Mapping[str, Any]
) -> tuple[Row, ...]:
    """Rows of a CSV file whose header names the fields of `kind` in order.

    Raises:
      ValueError: another header, a row of another length, a source, GPU, dtype or kind that is not
        known, or a number that is not positive; with file and line.
    """
    names = [field.name for field in fields(kind)]
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        header = next(lines, [])
        if header != names:
            raise ValueError(
                f"{path.name} line 1: the columns are {', '.join(header) or 'none'}, expected "
                f"{', '.join(names)}. Name them so, in this order."
            )
        rows = []
        for cells in lines:
            where = f"{path.name} line {lines.line_num}"
            if len(cells) != len(names):
                raise ValueError(
                    f"{where}: {len(cells)} cells, expected {len(names)}. Give one to each column."
                )
            if cells[0] not in known_sources:
                raise ValueError(
                    f"{where}: source {cells[0]!r} is not in sources.toml. Add its table there."
                )
            # The field's own type says how a cell reads: text, whole number, seconds or a truth.
            types = (field.type for field in fields(kind))
            row = (
                _cell(where, name, text, as_type)
                for name, text, as_type in zip(names, cells, types, strict=True)
            )
            rows.append(kind(*row))
    return tuple(rows)


def _cell(where: str, name: str, text: str, as_type: Any) -> Any:
    if as_type is str:
        if name in _CHOICES and text not in _CHOICES[name]:
            raise ValueError(
                f"{where}: {name} {text!r} is not known, expected one of "
                f"{', '.join(_CHOICES[name])}. Correct it, or add it to measurements.py."
            )
        return text
    if as_type is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{where}: {name} is {text!r}, expected true or false. Correct it.")
        return text == "true"
    try:
        number = as_type(text)
    except ValueError:
        number = 0
    if not (number > 0 and math.isfinite(number)):
        what = "whole number" if as_type is int else "number"
        raise ValueError(
            f"{where}: {name} is {text!r}, expected a positive {what}. Correct it or drop the row."
        )
    return number
