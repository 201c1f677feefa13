"""The published measurements of products, attention and collectives to fit and test against.

Each figure has the id of its source; `data/sources.toml` says who measured it, how, and under which
licence it was published.
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
DTYPES = ("bfloat16", "float16", "tensorfloat32", "int8", "unstated")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "p2p")
LOADS = ("balanced", "power_law_1.01", "power_law_1.2")
FOLDS = 5
_TEST_SHARE = 0.4
_CHOICES = {"gpu": GPUS, "dtype": DTYPES, "kind": KINDS, "loads": LOADS}


@dataclass(frozen=True)
class MeasuredGemm:
    """A measured matrix product batch x [m, k] x [k, n] on one GPU.

    Attributes:
      source: id in `sources()`.
      gpu: kind of GPU, one of GPUS.
      dtype: dtype of both operands, one of DTYPES.
      batch, m, n, k: sizes.
      seconds: seconds per product.
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
    """A measured pass of attention, softmax(Q K^T) V or its gradients, on one GPU.

    Attributes:
      source, gpu, dtype: as in MeasuredGemm.
      kernel: the implementation.
      batch: sequences.
      heads, kv_heads: heads of Q, heads of K and V.
      head_dim, value_dim: width of a head of Q and K, and of V.
      q_len, kv_len: rows of Q and of K; q_len is 1 in decode.
      causal: whether queries are masked from later keys.
      backward: whether it is the backward pass alone.
      window: keys that a query sees at most; kv_len where all are.
      seconds: seconds per call.
    """

    source: str
    gpu: str
    kernel: str
    dtype: str
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    q_len: int
    kv_len: int
    causal: bool
    backward: bool
    window: int
    seconds: float

    @property
    def key(self) -> str:
        """The shape, for `is_test`."""
        return (
            f"{self.batch},{self.heads},{self.kv_heads},{self.head_dim},"
            f"{self.q_len},{self.kv_len},{str(self.causal).lower()},"
            f"{self.value_dim},{str(self.backward).lower()},{self.window}"
        )


@dataclass(frozen=True)
class MeasuredExperts:
    """A measured MLP over experts, on the busiest of the GPUs that share them.

    Attributes:
      source, gpu, kernel, dtype: as in MeasuredAttention.
      tokens: tokens of all GPUs that share the experts.
      hidden, inter, top_k, experts: widths, experts per token, experts of the layer.
      tensor, expert: GPUs that split an expert's width, and that split the experts.
      loads: how rows are spread over experts, one of LOADS: "power_law_1.2" has exponent 1.2.
      seconds: seconds per call.
    """

    source: str
    gpu: str
    kernel: str
    dtype: str
    tokens: int
    hidden: int
    inter: int
    top_k: int
    experts: int
    tensor: int
    expert: int
    loads: str
    seconds: float

    @property
    def key(self) -> str:
        """The shape, for `is_test`."""
        return (
            f"{self.tokens},{self.hidden},{self.inter},{self.top_k},{self.experts},"
            f"{self.tensor},{self.expert},{self.loads}"
        )


@dataclass(frozen=True)
class MeasuredDispatch:
    """A measured exchange of the rows of experts: to their GPUs, and back.

    Attributes:
      source, gpu, nodes, devices: as in MeasuredCollective.
      tokens: tokens of one GPU.
      hidden, top_k, experts: as in MeasuredExperts.
      sms: streaming multiprocessors that copy.
      dispatch_s, combine_s: seconds of each direction.
    """

    source: str
    gpu: str
    nodes: int
    devices: int
    tokens: int
    hidden: int
    top_k: int
    experts: int
    sms: int
    dispatch_s: float
    combine_s: float

    @property
    def key(self) -> str:
        """The shape, for `is_test`."""
        return f"{self.nodes},{self.tokens},{self.hidden},{self.top_k},{self.experts},{self.sms}"


@dataclass(frozen=True)
class MeasuredCollective:
    """A measured collective, or send to a neighbour.

    Attributes:
      source, gpu: as in MeasuredGemm.
      nodes: machines that take part.
      devices: GPUs that take part, over all nodes.
      kind: one of KINDS.
      bytes: the full array of all-reduce, the gathered array of all-gather, the input of
        reduce-scatter, one device's buffer of all-to-all, the message of p2p.
      seconds: seconds per collective.
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
    """Whether a shape is held out of every fit, as about 40 % of the shapes are.

    It depends on the shape alone, so that one shape from two sources or dtypes is on one side.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < _TEST_SHARE


def fold_of(key: str) -> int:
    """Return which of the FOLDS of a cross-validation a key is in, by the key alone."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") % FOLDS


@functools.lru_cache
def gemms() -> tuple[MeasuredGemm, ...]:
    """Read all measured matrix products; raises as `read` does."""
    return read(MeasuredGemm, DATA / "gemm.csv", sources())


@functools.lru_cache
def attentions() -> tuple[MeasuredAttention, ...]:
    """Read all measured attention calls; raises as `read` does."""
    return read(MeasuredAttention, DATA / "attention.csv", sources())


@functools.lru_cache
def experts() -> tuple[MeasuredExperts, ...]:
    """Read all measured MLPs over experts; raises as `read` does."""
    return read(MeasuredExperts, DATA / "experts.csv", sources())


@functools.lru_cache
def dispatches() -> tuple[MeasuredDispatch, ...]:
    """Read all measured exchanges of rows of experts; raises as `read` does."""
    return read(MeasuredDispatch, DATA / "dispatch.csv", sources())


@functools.lru_cache
def collectives() -> tuple[MeasuredCollective, ...]:
    """Read all measured collectives; raises as `read` does."""
    return read(MeasuredCollective, DATA / "collectives.csv", sources())


@functools.lru_cache
def sources() -> Mapping[str, Mapping[str, str]]:
    """Read the sources: id -> title, url, licence, authors, gpu, software, method, conversions."""
    tables = tomllib.loads((DATA / "sources.toml").read_text(encoding="utf-8"))
    return MappingProxyType({name: MappingProxyType(table) for name, table in tables.items()})


def read[
    Row: (MeasuredGemm, MeasuredAttention, MeasuredExperts, MeasuredDispatch, MeasuredCollective)
](kind: type[Row], path: Path, known_sources: Mapping[str, Any]) -> tuple[Row, ...]:
    """Read the rows of a CSV file whose header names the fields of `kind` in order.

    Raises:
      ValueError: a wrong header, a row of the wrong length, an unknown source, GPU, dtype or kind,
        or a number that is not positive; names the file and line.
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
            context = f"{path.name} line {lines.line_num}"
            if len(cells) != len(names):
                raise ValueError(
                    f"{context}: {len(cells)} cells, expected {len(names)}. Give one per column."
                )
            if cells[0] not in known_sources:
                raise ValueError(
                    f"{context}: source {cells[0]!r} is not in sources.toml. Add its table there."
                )
            # The type of the field decides how its cells are read.
            types = (field.type for field in fields(kind))
            row = (
                _cell(context, name, text, as_type)
                for name, text, as_type in zip(names, cells, types, strict=True)
            )
            rows.append(kind(*row))
    return tuple(rows)


def _cell(context: str, name: str, text: str, as_type: Any) -> Any:
    if as_type is str:
        if name in _CHOICES and text not in _CHOICES[name]:
            raise ValueError(
                f"{context}: {name} {text!r} is not known, expected one of "
                f"{', '.join(_CHOICES[name])}. Correct it, or add it to measurements.py."
            )
        return text
    if as_type is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{context}: {name} is {text!r}, expected true or false. Correct it.")
        return text == "true"
    try:
        number = as_type(text)
    except ValueError:
        number = 0
    if not (number > 0 and math.isfinite(number)):
        what = "whole number" if as_type is int else "number"
        raise ValueError(
            f"{context}: {name} is {text!r}, expected a positive {what}. Correct it or drop the "
            "row."
        )
    return number
