"""Calls of libraries: which are understood by their bytes, and which nobody knows the cost of."""

import math
import re

from parallax.hlo.cudnn import fused_attention
from parallax.hlo.declared import declared_cost
from parallax.hlo.module import Computation, Instruction, Module
from parallax.hlo.products import custom_call_target, is_product

# Calls that launch nothing measurable, or whose bytes are all of their cost.
_BYTES_ONLY = re.compile(
    r"(Sharding|SPMD\w+Shape|annotate_device_placement|AllocateBuffer|MoveToHost|MoveToDevice|"
    r"LayoutConstraint|(__gpu\$)?TopK|__cub\$\w+|__cudnn\$(norm|convReorderFilterAndBias)|"
    r"cu_threefry2x32\w*|cu_lu_pivots_to_permutation|xla\.sdy\..*)"
)
# Opcodes whose cost is that of a library's solver, or of the host.
_UNKNOWN = frozenset({
    "cholesky", "triangular-solve", "infeed", "outfeed", "send", "recv", "eigh", "qr", "svd",
})  # fmt: skip
# A kernel transforms up to so many elements of a dim in shared memory; a longer one is read again.
_FFT_IN_ONE_PASS = 1 << 12
_RADIX_BITS = 8


def unknown_call(computation: Computation, i: Instruction) -> str:
    """Return the target or opcode of work of which only the bytes are known; "" for other work."""
    opcode = i.opcode.removesuffix("-start")
    if opcode in _UNKNOWN:
        return opcode
    if opcode != "custom-call" or is_product(i):
        return ""
    target = custom_call_target(i)
    if _BYTES_ONLY.fullmatch(target) or declared_cost(i) or fused_attention(computation, i):
        return ""
    return target


def passes(module: Module, computation: Computation, i: Instruction) -> float:
    """Count how often a kernel reads and writes its arrays: more than once to sort or transform."""
    opcode = i.opcode.removesuffix("-start")
    if opcode == "fusion":
        called = module.computation(i.calls()["calls"][0])
        return max((passes(module, called, x) for x in called.instructions), default=1.0)
    if opcode == "sort":
        size = max((math.prod(s.dims) for s in computation.operand_shapes(i)), default=1)
        return max(1.0, math.log2(max(2, size)))
    if opcode == "fft":
        lengths = [int(n) for n in re.findall(r"[0-9]{1,18}", i.attributes.get("fft_length", ""))]
        return float(sum(_fft_passes(n) for n in lengths) or 1)
    if opcode == "custom-call" and custom_call_target(i).startswith("__cub$DeviceRadixSort"):
        keys = computation.operand_shapes(i)[:1]
        bits = max((8 * s.n_bytes // max(1, math.prod(s.dims)) for s in keys), default=_RADIX_BITS)
        return max(1.0, bits / _RADIX_BITS)
    return 1.0


def _fft_passes(length: int) -> int:
    return max(1, math.ceil(math.log(max(2, length), _FFT_IN_ONE_PASS)))
