"""The cases of packed products that tests check, that are compiled, and that a benchmark times.

An `Operation` of `kernels.operations`, which documents each part.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from parallax.kernels.packed_matmul.api import packed_matmul
from parallax.kernels.packed_matmul.limits import cut_name
from parallax.kernels.packed_matmul.reference import PackedMatrix
from parallax.kernels.validation import Kind

ABOUT = """\
The product of a decoding step's tokens by a packed weight: INT8, INT4 in groups that share scales,
and either, or 16 bits, with 2:4 positions. Packed tiles of 128 outputs stream in once, are unpacked
in registers and multiplied from shared memory, outputs as the rows of wgmma and up to 64 tokens as
its columns; scales multiply sums. The inputs of large weights are divided among blocks, whose sums
XLA adds. It has no gradient."""


class Case(NamedTuple):
    """The parameters of one product on random inputs.

    Attributes:
      tokens, inputs, outputs: sizes.
      dtype: dtype of x, and of values of 16 bits.
      bits: bits of a value; 16 has no scales.
      group: inputs that share a scale; 0: all.
      is_sparse: whether two of every four inputs are kept.
    """

    tokens: int
    inputs: int
    outputs: int
    dtype: str = "float16"
    bits: int = 8
    group: int = 0
    is_sparse: bool = False

    @property
    def name(self) -> str:
        group = f"by{self.group}" if self.group else ""
        stored = f"{self.bits}bits{group}{'-2of4' * self.is_sparse}"
        return f"{self.dtype}-{stored}-{self.inputs}x{self.outputs}-{self.tokens}tokens"

    @property
    def kind(self) -> Kind:
        return Kind(None, self.dtype, cut=cut_name(stored_like(self)))

    @property
    def flops(self) -> float:
        return 2.0 * self.tokens * self.inputs * self.outputs

    @property
    def packed_bytes(self) -> float:
        """Bytes of values, positions and scales."""
        stored = [a for a in stored_like(self) if a is not None]
        return float(sum(np.prod(a.shape) * a.dtype.itemsize for a in stored))

    @property
    def bytes_accessed(self) -> float:
        """Bytes of the stored weight, of x and of the float32 result, once each."""
        return self.packed_bytes + self.tokens * (2.0 * self.inputs + 4.0 * self.outputs)


# For the interpreter: both dtypes, every format, tokens that 8 does not divide, one part of the
# inputs and several.
SMALL = (
    Case(5, 256, 128, "bfloat16"),
    Case(16, 512, 256, is_sparse=True),
    Case(9, 256, 128, "bfloat16", bits=4, group=128),
    Case(64, 512, 128, group=128, is_sparse=True),
    Case(1, 256, 256, "bfloat16", bits=4, group=256, is_sparse=True),
    Case(33, 256, 128, bits=16, is_sparse=True),
    Case(40, 384, 256),
)

# Every format at both ends of the tokens: the kernel's code does not depend on other sizes.
SHIPPED = tuple(
    Case(tokens, 1024, 256, dtype, bits, group, sparse)
    for bits, group in ((8, 0), (4, 128), (16, 0))
    for sparse in (False, True)
    if sparse or bits < 16
    for tokens, dtype in ((16, "float16"), (64, "bfloat16"))
)

# The matrices of one layer of the compressed paper, for 1, 16 and 64 tokens.
TIMED = tuple(
    Case(tokens, inputs, outputs, bits=bits, group=group, is_sparse=sparse)
    for bits, group, sparse in ((8, 0, False), (8, 0, True), (4, 128, False))
    for inputs, outputs in ((4096, 4096), (4096, 16_384), (16_384, 4096))
    for tokens in (1, 16, 64)
)


def inputs(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw x [T, K], then values and any positions and scales; outputs are about one."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((case.tokens, case.inputs), np.float32).astype(case.dtype)
    values, positions, scales = stored_like(case)
    if case.bits == 16:
        drawn = random.standard_normal(values.shape, np.float32) * case.inputs**-0.5
        arrays = [x, drawn.astype(values.dtype)]
    else:
        arrays = [x, random.integers(0, 256, values.shape, np.uint8).view(values.dtype)]
    if positions is not None:
        pairs = np.array([i | j << 2 for i in range(4) for j in range(i + 1, 4)], np.uint8)
        low, high = random.choice(pairs, (2, *positions.shape))
        arrays.append(low | high << 4)
    if scales is not None:
        step = case.inputs**-0.5 / 2 ** (case.bits - 2)
        arrays.append(random.uniform(0.5 * step, 1.5 * step, scales.shape).astype(np.float32))
    return tuple(arrays)


def program(case: Case, implementation: str | None) -> Callable[..., tuple[jax.Array]]:
    """Return a function of the arrays of `inputs` to a float32 array [T, O]."""

    def run(x, *arrays):
        return (packed_matmul(x, matrix(case, arrays), implementation=implementation),)

    return run


def matrix(case: Case, arrays) -> PackedMatrix:
    """Return the arrays that follow x in `inputs` as the operation takes them."""
    left = list(arrays)
    return PackedMatrix(*(None if like is None else left.pop(0) for like in stored_like(case)))


def exact(case: Case, x, *arrays) -> tuple[np.ndarray]:
    """Compute the result in float64, each weight put where its bytes say."""
    values, positions, scales = matrix(case, arrays)
    values, outputs = np.asarray(values), case.outputs
    if case.bits == 4:  # the earlier input in the low bits
        pairs = np.stack([values << 4, values], axis=1).view(np.int8) >> 4
        values = pairs.reshape(-1, outputs)
    values = values.astype(np.float64)
    if positions is not None:
        places = np.stack([np.asarray(positions) >> 2 * i & 3 for i in range(4)], axis=1)
        runs = np.repeat(np.arange(case.inputs // 4), 2)[:, None]
        dense = np.zeros((case.inputs, outputs))
        dense[4 * runs + places.reshape(-1, outputs), np.arange(outputs)] = values
        values = dense
    if scales is not None:
        scales = np.asarray(scales).astype(np.float64)
        values = values * np.repeat(scales, case.inputs // len(scales), axis=0)
    return (x.astype(np.float64) @ values,)


def stored_like(case: Case) -> PackedMatrix:
    """Return the shapes and dtypes of what is stored."""

    def like(rows: int, dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, case.outputs), dtype)

    kept = case.inputs // 2 if case.is_sparse else case.inputs
    rows, dtype = {4: (kept // 2, "uint8"), 8: (kept, "int8"), 16: (kept, case.dtype)}[case.bits]
    groups = case.inputs // (case.group or case.inputs)
    return PackedMatrix(
        like(rows, dtype),
        like(case.inputs // 8, "uint8") if case.is_sparse else None,
        like(groups, "float32") if case.bits < 16 else None,
    )
