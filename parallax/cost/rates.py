"""The cost model constants of one kind of GPU, with the source and the error of each figure."""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallax.codec import FileFormat, later
from parallax.cost.attention import AttentionRates
from parallax.cost.experts import ExpertRates
from parallax.cost.gemm import GemmRates
from parallax.meshes.gpus import GPUS

FILE_VERSION = 2
_SHIPPED = Path(__file__).parent / "shipped"
TERMS = ("matrix products", "attention", "memory", "launches", "communication")

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
LINKS = frozenset({*COLLECTIVES, "p2p", "network"})
# Rates of collectives between nodes, which only a calibration on several nodes has.
BETWEEN_NODES = {kind: f"network {kind}" for kind in COLLECTIVES}
# Share of PCIe's bandwidth that copies of pinned memory reach: 55 of 63 GB/s between an H100 and
# its host, as NVIDIA's nvbandwidth prints (memcpy by copy engines). Taken for other GPUs too.
HOST_COPY_EFFICIENCY = 0.87
_DIVISORS = (
    "flops_per_s", "bytes_per_s", "half_bytes", "cached_bytes", "memory_share", "query_share",
    "key_share", "tile_queries", "overlap", "splits",
)  # fmt: skip


@dataclass(frozen=True)
class LinkRates:
    """The rates of one kind of collective, inside a node or between nodes.

    Inside a node, over n devices, an array of S bytes takes

      start_s + step_s (n - 1) + early_s S / (S + early_half_bytes)
      + (extra_s + extra_step_s (n - 1)) S / (S + half_bytes) + moving

    The saturating terms are what NCCL's second and third protocol cost more at the start. `moving`
    is a ring's bytes per device over the rate bytes_per_s / (1 + few / (n - 1)), since few devices
    use fewer channels; or, for an all-reduce that switches sum, S / (switch_share bytes_per_s).

    Between N nodes the same constants count rounds (the logarithm of N) and further nodes, beside
    the start inside a node, see `collectives.between_seconds`; the rate is that of a network card.

    Attributes:
      start_s: seconds before anything moves; between nodes, per round.
      bytes_per_s: bytes per second of a device, or of its card.
      step_s: seconds per further device, or per further node.
      few: what few devices lose.
      extra_s, extra_step_s, half_bytes: start, step and half size of the protocol of large arrays.
      early_s, early_half_bytes: start and half size of the protocol before that.
      switch_share: rate of an array that switches sum over bytes_per_s; 0 where they do not.
      tree: whether an all-reduce between nodes may follow trees: two nodes then send it once.
    """

    start_s: float
    bytes_per_s: float
    step_s: float = 0.0
    few: float = 0.0
    extra_s: float = 0.0
    half_bytes: float = 1.0
    extra_step_s: float = later(0.0, omit=True)
    early_s: float = later(0.0, omit=True)
    early_half_bytes: float = later(1.0, omit=True)
    switch_share: float = later(0.0, omit=True)
    tree: bool = later(False, omit=True)


@dataclass(frozen=True)
class PowerRates:
    """The power of an idle GPU in watts, the joules per FLOP and byte, and the power limit."""

    idle_w: float
    flop_j: float
    memory_byte_j: float
    link_byte_j: float
    limit_w: float


@dataclass(frozen=True)
class Spread:
    """The 80 % interval of measured / modelled."""

    low: float
    high: float


@dataclass(frozen=True)
class Rates:
    """The constants of the cost model for one GPU.

    Attributes:
      name: "h100", or the name of a calibration.
      gpu: name in `meshes.gpus`.
      gemm: dtype (HLO name) -> rates of matrix products.
      attention: rates of fused attention.
      experts: rates of experts' products, and of the exchange of their rows.
      memory_bytes_per_s: bytes read and written per second, for large arrays.
      l2_bytes_per_s: bytes per second of arrays that are in the L2 cache.
      l2_share: share of the L2 cache that holds what was written or read last.
      launch_s: seconds from one kernel's end to the next one's start.
      loop_s: seconds per iteration that the host needs to test the condition of a loop whose trip
        count depends on data.
      links: kind of collective within a node -> rates; "network" for a message between nodes over
        one card; "network all-reduce" and the like (`BETWEEN_NODES`) for kinds of collectives
        between nodes whose own rates were measured.
      power: constants of the energy.
      spreads: term -> 80 % interval of measured / modelled; "network" for communication between
        nodes where it has one of its own.
      sources: figure -> its source, in words.
      version: version of the fit: a date or a hash.
    """

    name: str
    gpu: str
    gemm: Mapping[str, GemmRates]
    attention: AttentionRates
    experts: ExpertRates
    memory_bytes_per_s: float
    l2_bytes_per_s: float
    l2_share: float
    launch_s: float
    loop_s: float
    links: Mapping[str, LinkRates]
    power: PowerRates
    spreads: Mapping[str, Spread]
    sources: Mapping[str, str]
    version: str

    def __post_init__(self):
        _check(self)

    def gemm_rates(self, dtype: str) -> GemmRates:
        """Return the rates of products in a dtype; ValueError if nobody measured or derived it.

        FP8 ("f8") has INT8's, which GPUs with FP8 units multiply as fast; others use 16 bits.
        """
        same = {"bf16": "f16"}.get(dtype, dtype)
        if dtype == "f8" and dtype not in self.gemm:
            gpu = GPUS[self.gpu]
            same = "s8" if gpu.fp8_flops == gpu.int8_flops and "s8" in self.gemm else "f16"
        if same not in self.gemm:
            raise ValueError(
                f"rates {self.name!r}: no matrix product rate for {dtype}. Known: "
                f"{', '.join(self.gemm)}. Calibrate with that dtype."
            )
        return self.gemm[same]

    def network(self, kind: str) -> LinkRates:
        """Return the rates of a kind of collective between nodes: its own, or a message's."""
        return self.links.get(BETWEEN_NODES.get(kind, ""), self.links["network"])

    @property
    def measured_between_nodes(self) -> bool:
        """Whether all collectives between nodes have rates of their own, which were measured."""
        return set(BETWEEN_NODES.values()) <= set(self.links)

    @property
    def host_bytes_per_s(self) -> float:
        """The bytes per second of a copy to or from the host's memory, in one direction."""
        return HOST_COPY_EFFICIENCY * GPUS[self.gpu].pcie_bytes_per_s

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as in a calibration file."""
        return FILE.encode(self)

    @classmethod
    def from_dict(cls, data: Any, where: str = "rates") -> "Rates":
        """Read what `to_dict` wrote; `where` names its source in errors.

        Raises:
          ValueError: fields are missing, unknown, or not positive numbers.
        """
        return FILE.decode(data, where)

    @classmethod
    def load(cls, path: str | Path) -> "Rates":
        """Read a calibration file (JSON); ValueError if it is not one."""
        return FILE.load(path)

    def save(self, path: str | Path) -> None:
        """Write a calibration file (JSON)."""
        FILE.save(self, path)


FILE = FileFormat(Rates, "calibration", "rates_version", FILE_VERSION, "Calibrate again.")


def _check(rates: Rates) -> None:
    """Raise ValueError unless every constant is a number that an estimate can use."""

    def walk(value: Any, path: str) -> None:
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                walk(getattr(value, field.name), f"{path}.{field.name}".removeprefix("."))
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}")
        elif isinstance(value, str):
            return
        elif not 0 <= value < float("inf"):
            raise ValueError(f"{path} must be a non-negative number, got {value!r}.")
        elif value == 0 and path.endswith(_DIVISORS):
            raise ValueError(f"{path} must be more than 0, as it is a divisor.")

    walk(rates, "")
    if rates.gpu not in GPUS:
        raise ValueError(f"gpu {rates.gpu!r} is not known: {', '.join(GPUS)}.")
    for name, least in (("gemm", {"f16"}), ("links", LINKS), ("spreads", set(TERMS))):
        if missing := least - set(getattr(rates, name)):
            raise ValueError(f"{name} lacks {sorted(missing)}.")
    if unknown := sorted(set(rates.links) - LINKS - set(BETWEEN_NODES.values())):
        raise ValueError(f"links.{unknown[0]} is not known: {', '.join(sorted(LINKS))}.")
    for name in ("forward", "backward", "decode"):
        widths = list(getattr(rates.attention, name))
        if not widths or not all(str(width).isdecimal() for width in widths):
            raise ValueError(f"attention.{name}: expected rates by head width, got {widths}.")
    for name, spread in rates.spreads.items():
        if spread.low > spread.high:
            raise ValueError(f"spreads.{name}: low {spread.low} is over {spread.high}.")


@functools.lru_cache(maxsize=16)
def rates_of(gpu: str) -> Rates:
    """Load the constants shipped for a GPU (see docs/generated/accuracy.md).

    Args:
      gpu: name of a GPU, such as "h100".

    Raises:
      ValueError: no constants are shipped for it.
    """
    path = _SHIPPED / f"{gpu}.json"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _SHIPPED.glob("*.json")))
        raise ValueError(
            f"no rates for GPU {gpu!r}. Shipped: {known}. Give --rates=FILE of `parallax "
            "calibrate` on one, or ship some (docs/extending.md, A GPU)."
        )
    return Rates.load(path)
