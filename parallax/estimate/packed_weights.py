"""Quantized weights: their bytes per device, and what a product with one costs.

A dense weight is read once. A packed one has two readings: "xla" is what our programs do, a pass
reads it packed and writes it dense, and the product reads that; "kernel" is a product that unpacks
in registers and reads packed bytes alone, which nobody has built here: assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from parallax.compression import parse_format
from parallax.compression.formats import Format
from parallax.estimate.kernels import gemm, passes
from parallax.hlo.work import Kernel, Step
from parallax.models.config import ModelConfig
from parallax.parallel.split import Split

Unpacking = Literal["xla", "kernel"]
Formats = tuple[str, str]
_WIDE = 4
_ATTENTION = ("q", "k", "v", "out")
# Read the rows that another product before it reads, already rounded.
_SAME_ROWS = {"k": "q", "v": "q", "gate": "up"}


@dataclass(frozen=True)
class PackedWeights:
    """How the matrices of a layer are stored.

    Attributes:
      formats: of the attention's and of the MLP's matrices, by name; None leaves them dense.
      unpacking: the reading.
    """

    formats: Formats | None = None
    unpacking: Unpacking = "xla"

    def __post_init__(self):
        if self.unpacking not in get_args(Unpacking):
            raise ValueError(
                f"unpacking must be one of {', '.join(get_args(Unpacking))}; got "
                f"{self.unpacking!r}."
            )

    def form_of(self, name: str) -> Format | None:
        """Of the product's matrix (q, k, v, out, up, gate, down); None where it is dense."""
        if self.formats is None or name == "router":
            return None
        form = parse_format(self.formats[0 if name in _ATTENTION else 1])
        return form if form.sparse or form.group is not None else None

    def unpacked(self, name: str, n: float, k: float, item: int, count: int = 1) -> list[Step]:
        """The pass that makes `count` matrices [k, n] dense, where there is one.

        The dense copy is called `<name>.dense`, the stored weight `<name>.w`.
        """
        form = self.form_of(name)
        if form is None or self.unpacking == "kernel" or form.activation_bits:
            return []
        weight = f"{name}.w"
        stored = ((weight, float(count * form.n_bytes(int(k), int(n)))),)
        return [Kernel(f"{name}.dense", stored, float(count * k * n * item), weights=(weight,))]

    def multiplied(
        self, name: str, m: float, n: float, k: float, dtype: str, item: int
    ) -> list[Kernel]:
        """The product [m, k] x [k, n] itself, and the passes that it asks for."""
        form = self.form_of(name)
        x = "up.x" if name == "gate" else f"{name}.x"  # both read the same rows
        if form is None:
            return [gemm(name, m, n, k, dtype, item, a=x)]
        packed = float(form.n_bytes(int(k), int(n)))
        if form.activation_bits:
            rows, out = float(m * k), float(m * n)
            a = f"{_SAME_ROWS.get(name, name)}.s8"
            rounded = [] if name in _SAME_ROWS else [passes(a, rows * item, rows, x)]
            product = gemm(name, m, n, k, "s8", 1, a=a, b_bytes=packed, out_item=_WIDE)
            return [*rounded, product, passes(f"{name}.scaled", out * _WIDE, out * item, name)]
        if self.unpacking == "kernel":
            return [gemm(name, m, n, k, dtype, item, a=x, b_bytes=packed)]
        return [gemm(name, m, n, k, dtype, item, a=x, b=f"{name}.dense")]


def weights_of(config: ModelConfig) -> PackedWeights:
    """As the config says, the way our programs unpack them."""
    return PackedWeights(config.compression)


def device_matrices(config: ModelConfig, split: Split) -> Mapping[str, tuple[int, int, int]]:
    """The matrices of one layer per device: name -> (inputs, outputs, how many)."""
    count, d = split.count, config.d_model
    head_dim = config.head_dim // count("head_dim")
    q = config.num_heads // count("heads") * head_dim
    kv = max(1, config.num_kv_heads // count("kv_heads")) * head_dim
    f = config.d_ff // count("mlp")
    experts = max(1, config.num_experts // count("expert"))
    found = {"q": (d, q, 1), "k": (d, kv, 1), "v": (d, kv, 1), "out": (q, d, 1)}
    found |= {"up": (d, f, experts), "down": (f, d, experts)}
    return found | ({"gate": (d, f, experts)} if config.mlp == "gated" else {})


def layer_weight_bytes(
    config: ModelConfig, split: Split, weights: PackedWeights
) -> tuple[float, float, float]:
    """The bytes of one layer's matrices per device: as stored, dense, and made dense by a pass.

    Raises:
      ValueError: a shard that is no whole number of runs, groups and bytes.
    """
    stored = dense = made = 0.0
    for name, (inputs, outputs, count) in device_matrices(config, split).items():
        form = weights.form_of(name)
        whole = float(inputs * outputs * count * config.item_bytes)
        dense += whole
        stored += whole if form is None else float(count * form.n_bytes(inputs, outputs))
        made += whole if weights.unpacked(name, outputs, inputs, config.item_bytes) else 0.0
    return stored, dense, made
