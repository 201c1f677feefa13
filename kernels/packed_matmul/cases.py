"""The cases of packed products that tests check, that are compiled, and that a benchmark times.

An `Operation` of `kernels.operations`, which documents each part.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from parallax.kernels.packed_matmul.api import packed_matmul
from parallax.kernels.packed_matmul.limits import kind_of
from parallax.kernels.packed_matmul.reference import PackedMatrix
from parallax.kernels.validation import Kind

ABOUT = """\
The product of a decoding step's tokens by a packed weight: INT8, INT4 in groups that share scales,
and either, or 16 bits, with 2:4 positions; also of each expert's tokens by its weight. Packed tiles
of 128 outputs stream in once, are unpacked in registers and multiplied from shared memory, outputs
as the rows of wgmma and up to 64 tokens as its columns; scales multiply sums. INT8 tokens (W8A8)
are multiplied in 16 bits as well, and their sums are exact, in int32. The inputs of large weights
are divided among blocks, whose sums XLA adds. It has no gradient."""


class Case(NamedTuple):
    """The parameters of one product on random inputs.

    Attributes:
      tokens, inputs, outputs: sizes.
      dtype: dtype of x, and of values of 16 bits; int8 has no scales.
      bits: bits of a value; 16 has no scales.
      group: inputs that share a scale; 0: all.
      is_sparse: whether two of every four inputs are kept.
      experts: matrices of these sizes, with so many tokens each; 0: one, without a dim for it.
    """

    tokens: int
    inputs: int
    outputs: int
    dtype: str = "float16"
    bits: int = 8
    group: int = 0
    is_sparse: bool = False
    experts: int = 0

    @property
    def name(self) -> str:
        group = f"by{self.group}" if self.group else ""
        stored = f"{self.bits}bits{group}{'-2of4' * self.is_sparse}"
        experts = f"{self.experts}x" if self.experts else ""
        return f"{self.dtype}-{stored}-{experts}{self.inputs}x{self.outputs}-{self.tokens}tokens"

    @property
    def lead(self) -> tuple[int, ...]:
        """The dims in front of all arrays."""
        return (self.experts,) if self.experts else ()

    @property
    def kind(self) -> Kind:
        return kind_of(jax.ShapeDtypeStruct((), self.dtype), stored_like(self))

    @property
    def flops(self) -> float:
        return 2.0 * max(1, self.experts) * self.tokens * self.inputs * self.outputs

    @property
    def packed_bytes(self) -> float:
        """Bytes of values, positions and scales."""
        stored = [a for a in stored_like(self) if a is not None]
        return float(sum(np.prod(a.shape) * a.dtype.itemsize for a in stored))

    @property
    def bytes_accessed(self) -> float:
        """Bytes of the stored weight, of x and of the 4-byte result, once each."""
        row = np.dtype(self.dtype).itemsize * self.inputs + 4.0 * self.outputs
        return self.packed_bytes + max(1, self.experts) * self.tokens * row


# For the interpreter: all dtypes, every format, tokens that 8 does not divide, one part of the
# inputs and several, experts.
SMALL = (
    Case(5, 256, 128, "bfloat16"),
    Case(16, 512, 256, is_sparse=True),
    Case(9, 256, 128, "bfloat16", bits=4, group=128),
    Case(64, 512, 128, group=128, is_sparse=True),
    Case(1, 256, 256, "bfloat16", bits=4, group=256, is_sparse=True),
    Case(33, 256, 128, bits=16, is_sparse=True),
    Case(40, 384, 256),
    Case(5, 256, 128, "int8"),
    Case(9, 256, 128, "bfloat16", bits=4, group=128, is_sparse=True, experts=3),
)

# Every format at both ends of the tokens: the kernel's code does not depend on other sizes.
SHIPPED = (
    *(
        Case(tokens, 1024, 256, dtype, bits, group, sparse)
        for bits, group in ((8, 0), (4, 128), (16, 0))
        for sparse in (False, True)
        if sparse or bits < 16
        for tokens, dtype in ((16, "float16"), (64, "bfloat16"))
    ),
    *(Case(tokens, 1024, 256, "int8") for tokens in (16, 64)),
    Case(64, 1024, 256, "bfloat16", experts=2),
)

# The matrices of one layer of the compressed paper, for 1, 16 and 64 tokens; also dense ones, for
# what packing gains.
TIMED = tuple(
    Case(tokens, inputs, outputs, bits=bits, group=group, is_sparse=sparse)
    for bits, group, sparse in ((8, 0, False), (8, 0, True), (4, 128, False), (16, 0, False))
    for inputs, outputs in ((4096, 4096), (4096, 16_384), (16_384, 4096))
    for tokens in (1, 16, 64)
)


def inputs(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw x [T, K], then values and any positions and scales; outputs are about one."""
    random = np.random.default_rng(seed)
    shape = (*case.lead, case.tokens, case.inputs)
    if case.dtype == "int8":
        x = random.integers(-127, 128, shape, np.int8)
    else:
        x = random.standard_normal(shape, np.float32).astype(case.dtype)
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
    """Return a function of the arrays of `inputs` to an array [T, O], or [E, T, O]."""

    def run(x, *arrays):
        return (packed_matmul(x, matrix(case, arrays), implementation=implementation),)

    return run


def matrix(case: Case, arrays) -> PackedMatrix:
    """Return the arrays that follow x in `inputs` as the operation takes them."""
    left = list(arrays)
    return PackedMatrix(*(None if like is None else left.pop(0) for like in stored_like(case)))


def exact(case: Case, x, *arrays) -> tuple[np.ndarray]:
    """Compute the result in float64, each weight put where its bytes say."""
    if case.experts:
        one = case._replace(experts=0)
        return (np.stack([exact(one, *own)[0] for own in zip(x, *arrays, strict=True)]),)
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
        return jax.ShapeDtypeStruct((*case.lead, rows, case.outputs), dtype)

    kept = case.inputs // 2 if case.is_sparse else case.inputs
    rows, dtype = {4: (kept // 2, "uint8"), 8: (kept, "int8"), 16: (kept, case.dtype)}[case.bits]
    groups = case.inputs // (case.group or case.inputs)
    return PackedMatrix(
        like(rows, dtype),
        like(case.inputs // 8, "uint8") if case.is_sparse else None,
        like(groups, "float32") if case.bits < 16 and case.dtype != "int8" else None,
    )
