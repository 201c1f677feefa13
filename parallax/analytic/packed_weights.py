"""The bytes per device of quantized weights, and the kernels of a product with one.

A dense weight is read once. A packed one is unpacked in one of two ways: "xla" is what our programs
do, a pass that reads it packed and writes it dense for the product; "kernel" is a product at the
library's rate that unpacks in registers and reads packed bytes alone, which is assumed. Our own
kernel, `packed_matmul`, multiplies a decoding step's tokens where a strategy enables it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from parallax.analytic.kernels import gemm, passes
from parallax.compression import parse_format
from parallax.compression.formats import Format
from parallax.hlo.execution_trace import Kernel, Step
from parallax.kernels.packed_matmul.limits import splits, unsupported_sizes
from parallax.kernels.packed_matmul.reference import KEPT, OF, unit_of
from parallax.models.config import PARTS, ModelConfig
from parallax.models.parameters import Parameter, layer_matrices
from parallax.parallel.split import Split

Unpacking = Literal["xla", "kernel"]
Formats = tuple[str, str]
_WIDE = 4
_OF_LATENTS = ("kb", "vb")


@dataclass(frozen=True)
class PackedWeights:
    """The storage of a layer's matrices, and how they are unpacked.

    Attributes:
      formats: names of the formats of attention's and of the MLP's matrices; None is dense.
      unpacking: who unpacks them, "xla" or "kernel".
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
        """Return the matrices of a model's layer, stored this way."""
        return LayerWeights(self, {matrix.name: matrix for matrix in layer_matrices(config)})


@dataclass(frozen=True)
class LayerWeights:
    """The matrices of one model's layer as they are stored, by the names of their products.

    Attributes:
      stored: how they are stored.
      matrices: name (such as q, out, up) -> matrix, of those that formats apply to.
    """

    stored: PackedWeights
    matrices: Mapping[str, Parameter]

    def part_of(self, name: str) -> str | None:
        """Return the part of the layer a product is in; None where no format applies to it."""
        return self.matrices[name].part if name in self.matrices else None

    def form_of(self, name: str) -> Format | None:
        """Return the format of a product's matrix; None where it is dense."""
        part = self.part_of(name)
        if self.stored.formats is None or part is None:
            return None
        form = parse_format(self.stored.formats[PARTS.index(part)])
        return form if form.packs else None

    def unpacked(self, name: str, n: float, k: float, item: int, count: int = 1) -> list[Step]:
        """Trace the pass that unpacks `count` matrices [k, n], where there is one.

        The dense copy is named `<name>.dense`, the stored weight `<name>.w`.
        """
        form = self.form_of(name)
        if form is None or self.stored.unpacking == "kernel" or form.activation_bits:
            return []
        weight = f"{name}.w"
        stored = ((weight, float(count * form.n_bytes(int(k), int(n)))),)
        return [Kernel(f"{name}.dense", stored, float(count * k * n * item), weights=(weight,))]

    def multiplied(
        self, name: str, m: float, n: float, k: float, dtype: str, item: int, count: int = 1
    ) -> list[Kernel]:
        """Trace `count` products [m, k] x [k, n] at once, with the passes of their format."""
        form, first = self.form_of(name), self._first_reader(name)
        # q, k and v each read their rows; the MLP's matrices together read them once.
        x = f"{first if self.part_of(name) == 'mlp' else name}.x"
        if form is None:
            return [gemm(name, m, n, k, dtype, item, a=x, batch=count)]
        packed = float(count * form.n_bytes(int(k), int(n)))
        if form.activation_bits:
            rows, out = float(count * m * k), float(count * m * n)
            a = f"{first}.s8"
            rounded = [] if first != name else [passes(a, rows * item, rows, x)]
            product = gemm(name, m, n, k, "s8", 1, a=a, b_bytes=packed, out_item=_WIDE,
                           batch=count)  # fmt: skip
            return [*rounded, product, passes(f"{name}.scaled", out * _WIDE, out * item, name)]
        if self.stored.unpacking == "kernel":
            return [gemm(name, m, n, k, dtype, item, a=x, b_bytes=packed, batch=count)]
        return [gemm(name, m, n, k, dtype, item, a=x, b=f"{name}.dense", batch=count)]

    def by_kernel(
        self, name: str, m: int, n: int, k: int, dtype: str, item: int, count: int = 1,
        picked: bool = False,
    ) -> list[Step]:  # fmt: skip
        """Trace `count` products of `m` tokens by our kernel, with the passes beside them.

        Rows are rounded or put in another order before, and the sums of the kernel's splits are
        added after. `dtype` is the rows', and `picked` says that a pass picks the weights of
        experts before, packed.

        Returns:
          [] where the kernel does not support the matrix, or nothing is packed.
        """
        form = self.form_of(name)
        # Matrices whose heads are also those of the rows are no plain products.
        if form is None or name in _OF_LATENTS:
            return []
        group, rounds = form.group or k, bool(form.activation_bits)
        of_rows = "int8" if rounds else dtype
        if form.sparse and (form.kept, form.of) != (KEPT, OF):
            return []
        if unsupported_sizes(of_rows, m, k, n, group):
            return []
        rows, first, steps = -(-m // 8) * 8, self._first_reader(name), []
        x, weight = f"{first}.x", f"{name}.w"
        read, written = (
            float(count * m * k * item),
            float(count * rows * k * (2 if rounds else item)),
        )
        if rounds or unit_of(form.bits, form.sparse) > 1:
            made = f"{first}.{'s8' if rounds else 'turned'}"
            if first == name:
                steps.append(passes(made, read, written, x))
            x = made
        stored, weights = float(count * form.n_bytes(k, n)), (weight,)
        if picked:
            steps.append(Kernel(f"{name}.picked", ((weight, stored),), stored, weights=weights))
            weight, weights = f"{name}.picked", ()
        parts = splits(m, k, n, group, form.bits_per_weight, count)
        sums = float(parts * count * rows * n * _WIDE)
        product = Kernel(f"{name}.sums", ((x, written), (weight, stored)), sums,
                         flops=2.0 * count * rows * n * k, computes="products",
                         weights=weights)  # fmt: skip
        out = float(count * m * n * item)
        return [*steps, product, passes(name, sums, out, f"{name}.sums")]

    def _first_reader(self, name: str) -> str:
        """Return the first product that reads the same rows as this one, possibly itself."""
        if name not in self.matrices or not self.matrices[name].reads_stream:
            return name
        mine = self.matrices[name]
        return next(
            n for n, m in self.matrices.items()
            if m.reads_stream and (m.part, m.is_shared) == (mine.part, mine.is_shared)
        )  # fmt: skip


def weights_of(config: ModelConfig) -> PackedWeights:
    """Return the weights as the config stores them and our programs unpack them."""
    return PackedWeights(config.compression)


def device_matrices(
    config: ModelConfig, split: Split, part: str | None = None
) -> Mapping[str, tuple[int, int, int]]:
    """Return a layer's (or a part's) matrices per device: name -> (inputs, outputs, count).

    They are those of a product: weights that are sharded over `embed` are gathered for it.
    """
    whole = split.replace(axes={**split.axes, "embed": ()})

    def local(matrix: Parameter) -> tuple[int, int, int]:
        sizes = zip(matrix.shape, matrix.axes, strict=True)
        return matrix.matrices(tuple(max(1, n // whole.count(names)) for n, names in sizes))

    return {matrix.name: local(matrix) for matrix in layer_matrices(config, part)}


def layer_weight_bytes(
    config: ModelConfig, split: Split, weights: PackedWeights
) -> tuple[float, float, float]:
    """Count the bytes of a layer's matrices per device: stored, dense, and unpacked by a pass.

    Raises:
      ValueError: a shard is not a whole number of runs, groups and bytes.
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
