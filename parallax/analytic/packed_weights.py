"""Quantized weights: their bytes per device, and what a product with one costs.

A dense weight is read once. A packed one has two readings: "xla" is what our programs do, a pass
reads it packed and writes it dense, and the product reads that; "kernel" is a product that unpacks
in registers and reads packed bytes alone, which nobody has built here: assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from parallax.analytic.kernels import gemm, passes
from parallax.compression import parse_format
from parallax.compression.formats import Format
from parallax.hlo.execution_trace import Kernel, Step
from parallax.models.config import PARTS, ModelConfig
from parallax.models.parameters import Parameter, layer_matrices
from parallax.parallel.split import Split

Unpacking = Literal["xla", "kernel"]
Formats = tuple[str, str]
_WIDE = 4


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

    def of(self, config: ModelConfig) -> "LayerWeights":
        """The matrices of this model's layer, stored so."""
        return LayerWeights(self, {matrix.name: matrix for matrix in layer_matrices(config)})


@dataclass(frozen=True)
class LayerWeights:
    """The matrices of one model's layer as they are stored, by the names of their products.

    Attributes:
      stored: how.
      matrices: name (such as q, out, up) -> matrix, of those that formats store.
    """

    stored: PackedWeights
    matrices: Mapping[str, Parameter]

    def part_of(self, name: str) -> str | None:
        """The product's part of the layer; None where formats leave its matrix alone."""
        return self.matrices[name].part if name in self.matrices else None

    def form_of(self, name: str) -> Format | None:
        """Format of the product's matrix; None where it is dense."""
        part = self.part_of(name)
        if self.stored.formats is None or part is None:
            return None
        form = parse_format(self.stored.formats[PARTS.index(part)])
        return form if form.sparse or form.group is not None else None

    def unpacked(self, name: str, n: float, k: float, item: int, count: int = 1) -> list[Step]:
        """The pass that makes `count` matrices [k, n] dense, where there is one.

        The dense copy is called `<name>.dense`, the stored weight `<name>.w`.
        """
        form = self.form_of(name)
        if form is None or self.stored.unpacking == "kernel" or form.activation_bits:
            return []
        weight = f"{name}.w"
        stored = ((weight, float(count * form.n_bytes(int(k), int(n)))),)
        return [Kernel(f"{name}.dense", stored, float(count * k * n * item), weights=(weight,))]

    def multiplied(
        self, name: str, m: float, n: float, k: float, dtype: str, item: int
    ) -> list[Kernel]:
        """The product [m, k] x [k, n] itself, and the passes that it asks for."""
        form, first = self.form_of(name), self._first_reader(name)
        # q, k and v each count a reading of their rows; the MLP's matrices count one together.
        x = f"{first if self.part_of(name) == 'mlp' else name}.x"
        if form is None:
            return [gemm(name, m, n, k, dtype, item, a=x)]
        packed = float(form.n_bytes(int(k), int(n)))
        if form.activation_bits:
            rows, out = float(m * k), float(m * n)
            a = f"{first}.s8"
            rounded = [] if first != name else [passes(a, rows * item, rows, x)]
            product = gemm(name, m, n, k, "s8", 1, a=a, b_bytes=packed, out_item=_WIDE)
            return [*rounded, product, passes(f"{name}.scaled", out * _WIDE, out * item, name)]
        if self.stored.unpacking == "kernel":
            return [gemm(name, m, n, k, dtype, item, a=x, b_bytes=packed)]
        return [gemm(name, m, n, k, dtype, item, a=x, b=f"{name}.dense")]

    def _first_reader(self, name: str) -> str:
        """The first product that reads the same rows as this one; itself where it is the first."""
        if name not in self.matrices or not self.matrices[name].reads_stream:
            return name
        part = self.part_of(name)
        return next(n for n, m in self.matrices.items() if m.reads_stream and m.part == part)


def weights_of(config: ModelConfig) -> PackedWeights:
    """As the config says, the way our programs unpack them."""
    return PackedWeights(config.compression)


def device_matrices(
    config: ModelConfig, split: Split, part: str | None = None
) -> Mapping[str, tuple[int, int, int]]:
    """The matrices per device of a layer, or of a part: name -> (inputs, outputs, how many)."""

    def local(matrix: Parameter) -> tuple[int, int, int]:
        sizes = zip(matrix.shape, matrix.axes, strict=True)
        return matrix.matrices(
            tuple(n if axis is None else max(1, n // split.count(axis)) for n, axis in sizes)
        )

    return {matrix.name: local(matrix) for matrix in layer_matrices(config, part)}


def layer_weight_bytes(
    config: ModelConfig, split: Split, weights: PackedWeights
) -> tuple[float, float, float]:
    """The bytes of one layer's matrices per device: as stored, dense, and made dense by a pass.

    Raises:
      ValueError: a shard that is no whole number of runs, groups and bytes.
    """
    stored = dense = made = 0.0
    layer = weights.of(config)
    for name, (inputs, outputs, count) in device_matrices(config, split).items():
        form = layer.form_of(name)
        whole = float(inputs * outputs * count * config.item_bytes)
        dense += whole
        stored += whole if form is None else float(count * form.n_bytes(inputs, outputs))
        made += whole if layer.unpacked(name, outputs, inputs, config.item_bytes) else 0.0
    return stored, dense, made
