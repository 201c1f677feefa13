"""The matrix products in a program's text: products, grouped and block-scaled ones, convolutions.

Each is one batched product [m, k] x [k, n], a convolution as the product that computes it. Sizes
come from shapes and attributes, and both must agree.
"""

import json
import math
import re
from typing import NamedTuple

from parallax.hlo.convolutions import convolution_sizes
from parallax.hlo.limits import UNREADABLE, short
from parallax.hlo.module import Computation, Instruction
from parallax.hlo.shapes import HloError, Shape

CUBLAS = re.compile(r"__cublas\$(gemm|lt\$matmul.*)")
_CONVOLUTION = re.compile(r"__cudnn\$conv(Forward|Bias|BackwardInput|BackwardFilter).*")
_BLOCK_SCALED = ("__cudnn$blockScaledDot", "__op$block_scaled_dot")
_GROUPED = "__cublas$lt$groupedMatmul"
_ONEDNN = ("__onednn$matmul", "__onednn$convolution")
_DIMS = re.compile(r"\{([0-9]{1,9}(,[0-9]{1,9})*)?\}")
# An algorithm that the program asks for, in a dot's attribute or a library call's configuration.
_ALGORITHM = re.compile(r"dot_(any_f8|[a-z]*[0-9]+)_\w*?(?:_x([0-9]))?(?:_fast_accum)?\b")
_TARGET = re.compile(r'"([^"]*)"')
# Opcodes and the dtypes that units multiply at one rate.
PRODUCTS = ("dot", "convolution", "ragged-dot", "scaled-dot")
_EIGHT_BITS = ("s2", "u2", "s4", "u4", "s8", "u8")
_WIDTHS = ("f8", "s8", "f16", "bf16", "f32", "f64")


class Product(NamedTuple):
    """A batched product [m, k] x [k, n].

    `dtype` is what the units multiply: "tf32" for float32 unless the program asks for another
    algorithm, "f8" for all formats of FP8 and FP4, "s8" for INT8 and INT4, otherwise the HLO dtype.
    A product of complex numbers is four of real ones: its k is four times as long. So it is where
    an algorithm makes float32 of several products (dot_bf16_bf16_f32_x3: three).
    """

    batch: int
    m: int
    n: int
    k: int
    dtype: str
    is_convolution: bool = False

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.m * self.n * self.k


def custom_call_target(instruction: Instruction) -> str:
    match = _TARGET.match(instruction.attributes.get("custom_call_target", ""))
    return match.group(1) if match else ""


def is_product(instruction: Instruction) -> bool:
    """Whether an instruction is itself a matrix product, whatever it calls."""
    opcode = instruction.opcode.removesuffix("-start")
    if opcode != "custom-call":
        return opcode in PRODUCTS
    target = custom_call_target(instruction)
    return bool(CUBLAS.match(target) or _CONVOLUTION.match(target)) or target in (
        *_BLOCK_SCALED, _GROUPED, *_ONEDNN
    )  # fmt: skip


def product(computation: Computation, i: Instruction) -> Product | None:
    """Read the matrix product that an instruction computes; None for any other instruction.

    Raises:
      HloError: shapes and attributes do not agree.
    """
    if not is_product(i):
        return None
    operands, out = list(computation.operand_shapes(i)), _output(i)
    if len(operands) < 2:
        raise HloError(f"%{i.name}: expected two operands, got {len(operands)}.")
    lhs, rhs = operands[:2]
    batch, m, n, k = _sizes(i, lhs, rhs, out)
    dtype, products = _asked(i) or (_dtype(i, lhs, rhs), 1)
    reals = 4 if lhs.dtype in ("c64", "c128") else 1
    return Product(batch, m, n, reals * products * k, dtype, "dim_labels" in i.attributes)


def _sizes(i: Instruction, lhs: Shape, rhs: Shape, out: Shape) -> tuple[int, int, int, int]:
    opcode, target = i.opcode.removesuffix("-start"), custom_call_target(i)
    if opcode == "convolution" or target.endswith("$convolution"):
        return convolution_sizes(i, lhs, rhs, out)
    if match := _CONVOLUTION.match(target):
        inside, kernel, result = {
            "BackwardInput": (out, rhs, lhs), "BackwardFilter": (lhs, out, rhs),
        }.get(match[1], (lhs, rhs, out))  # fmt: skip
        return convolution_sizes(i, inside, kernel, result)
    if opcode == "ragged-dot":
        return _ragged(i, lhs, rhs, out)
    if target == _GROUPED:
        return _grouped(i, lhs, rhs, out)
    if target == "__onednn$matmul":
        return _unnumbered(i, lhs, rhs, out)
    if target in _BLOCK_SCALED:
        last, batches = len(lhs.dims) - 1, tuple(range(len(lhs.dims) - 2))
        return _dot(i, lhs, rhs, out, (last,), (last,), batches)
    if opcode in ("dot", "scaled-dot"):
        return _dot(i, lhs, rhs, out, *_numbers(i))
    return _dot(i, lhs, rhs, out, *_cublas_numbers(i))


def _dims(text: str) -> tuple[int, ...]:
    if not _DIMS.fullmatch(text):
        raise HloError(f"dims {short(text)}: expected {{0,1,...}}.")
    return tuple(int(d) for d in re.findall(r"[0-9]+", text))


Numbers = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _numbers(i: Instruction) -> Numbers:
    """Return both operands' contracting dims and the first's batch dims."""
    keys = ("lhs_contracting_dims", "rhs_contracting_dims", "lhs_batch_dims")
    lhs, rhs, batch = (_dims(i.attributes.get(key, "{}")) for key in keys)
    return lhs, rhs, batch


def _cublas_numbers(i: Instruction) -> Numbers:
    try:
        config = json.loads(i.attributes["backend_config"])
        if isinstance(config, str):  # older versions quote it
            config = json.loads(config)
        config = config.get("gemm_backend_config", config)
        numbers = config["dot_dimension_numbers"]
        keys = ("lhs_contracting_dimensions", "rhs_contracting_dimensions", "lhs_batch_dimensions")
        lhs, rhs, batch = (tuple(int(d) for d in numbers[key]) for key in keys)
    except UNREADABLE:
        raise HloError(f"%{i.name}: no dot dimensions in its backend_config.") from None
    return lhs, rhs, batch


def _dot(
    i: Instruction,
    lhs_shape: Shape,
    rhs_shape: Shape,
    out_shape: Shape,
    lhs_contracting: tuple[int, ...],
    rhs_contracting: tuple[int, ...],
    lhs_batch: tuple[int, ...],
) -> tuple[int, int, int, int]:
    """Return (batch, m, n, k), after a check that the shapes agree."""
    lhs, rhs, out = lhs_shape.dims, rhs_shape.dims, out_shape.dims
    if any(d < 0 or dims.count(d) > 1 for dims in (lhs_contracting, rhs_contracting, lhs_batch)
           for d in dims) or set(lhs_contracting) & set(lhs_batch):  # fmt: skip
        raise HloError(f"%{i.name}: contracts a dim twice, or one below 0.")
    try:
        inner = math.prod(lhs[d] for d in lhs_contracting)
        same = inner == math.prod(rhs[d] for d in rhs_contracting)
        batch = math.prod(lhs[d] for d in lhs_batch)
    except IndexError:
        raise HloError(f"%{i.name}: contracts a dim its operand does not have.") from None
    if not same or math.prod(out) * inner**2 * batch != math.prod(lhs) * math.prod(rhs):
        raise HloError(f"%{i.name}: {lhs} times {rhs} over {inner} is not {out}.")
    m, n = (math.prod(dims) // max(1, batch * inner) for dims in (lhs, rhs))
    return batch, m, n, inner


def _ragged(i: Instruction, lhs: Shape, rhs: Shape, out: Shape) -> tuple[int, int, int, int]:
    """Return the sizes of a product whose rows are in groups, each row in one of them."""
    contracting, rhs_contracting, batches = _numbers(i)
    groups = _dims(i.attributes.get("rhs_group_dims", "{}"))
    taken = {*rhs_contracting, *_dims(i.attributes.get("rhs_batch_dims", "{}")), *groups}
    try:
        inner = math.prod(lhs.dims[d] for d in contracting)
        batch = math.prod(lhs.dims[d] for d in batches)
        same = inner == math.prod(rhs.dims[d] for d in rhs_contracting)
    except IndexError:
        raise HloError(f"%{i.name}: contracts a dim its operand does not have.") from None
    m = math.prod(lhs.dims) // max(1, inner * batch)
    n = math.prod(size for d, size in enumerate(rhs.dims) if d not in taken)
    # Rows in groups keep their dim; a contracted dim in groups leaves one result for each group.
    if not same or math.prod(out.dims) % max(1, batch * m * n) or (
        groups and math.prod(out.dims) != batch * m * n
    ):  # fmt: skip
        raise HloError(f"%{i.name}: {lhs.dims} times {rhs.dims} in groups is not {out.dims}.")
    return batch, m, n, inner


def _grouped(i: Instruction, lhs: Shape, rhs: Shape, out: Shape) -> tuple[int, int, int, int]:
    """Return the sizes of a library's grouped product, from its shapes alone."""
    shapes = f"%{i.name}: {lhs.dims} times {rhs.dims} in groups is not {out.dims}."
    if (len(lhs.dims), len(rhs.dims), len(out.dims)) == (2, 3, 2):
        (rows, n), rest = out.dims, lhs.dims
        inner = math.prod(rest) // max(1, rows)
        if rows not in rest or sorted(rhs.dims[1:]) != sorted((inner, n)):
            raise HloError(shapes)
        return 1, rows, n, inner
    if (len(lhs.dims), len(rhs.dims), len(out.dims)) == (2, 2, 3):
        _, m, n = out.dims
        rows = math.prod(lhs.dims) // max(1, m)
        if m not in lhs.dims or sorted(rhs.dims) != sorted((rows, n)):
            raise HloError(shapes)
        return 1, m, n, rows
    raise HloError(shapes)


def _unnumbered(i: Instruction, lhs: Shape, rhs: Shape, out: Shape) -> tuple[int, int, int, int]:
    """Return the sizes of a product whose contracted dims follow from its shapes alone."""
    batch = math.prod(out.dims[:-2])
    square = math.prod(lhs.dims) * math.prod(rhs.dims)
    inner = math.isqrt(square // max(1, math.prod(out.dims) * batch))
    if inner**2 * math.prod(out.dims) * batch != square:
        raise HloError(f"%{i.name}: {lhs.dims} times {rhs.dims} is not {out.dims}.")
    m, n = (math.prod(s.dims) // max(1, batch * inner) for s in (lhs, rhs))
    return batch, m, n, inner


def _output(instruction: Instruction) -> Shape:
    """Return the product's shape, without a library's workspace or an async start's operands."""
    elements = instruction.shape.elements
    if instruction.opcode.endswith("-start") and len(elements) > 1:
        return elements[1].elements[0] if elements[1].elements else elements[1]
    return elements[0] if elements else instruction.shape


def _asked(i: Instruction) -> tuple[str, int] | None:
    """Return what units multiply under the algorithm asked for, and its number of products."""
    config = i.attributes.get("backend_config", "")
    text = i.attributes.get("algorithm", "") or config[config.find("ALG_DOT") :]
    match = _ALGORITHM.search(text.lower()) if "dot" in text.lower() else None
    if match is None:
        return None
    dtype = match[1] if match[1] == "tf32" else _unit(match[1].removeprefix("any_"))
    return dtype, int(match[2] or 1)


def _dtype(i: Instruction, lhs: Shape, rhs: Shape) -> str:
    """Return the dtype that units multiply: the wider operand's; TF32 for float32 by default."""
    widest = max((_unit(s.dtype) for s in (lhs, rhs)), key=_WIDTHS.index)
    if widest == "f32" and {lhs.dtype, rhs.dtype} & {"f32", "c64"}:
        asked = i.attributes.get("operand_precision", "") + i.attributes.get("backend_config", "")
        return "f32" if "highest" in asked.lower() else "tf32"
    return widest


def _unit(dtype: str) -> str:
    if dtype.startswith(("f8", "f4")):
        return "f8"
    if dtype in _EIGHT_BITS:
        return "s8"
    return {"c64": "f32", "c128": "f64"}.get(dtype, dtype if dtype in _WIDTHS else "f32")
