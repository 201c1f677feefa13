"""The reading of quantized weights as the numbers that they stand for, slice by slice.

gpt-oss has the matrices of its experts in MXFP4: 32 numbers of 4 bits share one power of two.
DeepSeek-V3 has most matrices in FP8 (e4m3): 128 x 128 numbers share one factor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import ml_dtypes
import numpy as np

from parallax.models.huggingface.files import TensorFiles
from parallax.models.huggingface.tensors import Index

_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4 = np.array([*_HALF, *(-x for x in _HALF)], np.float32)
_GROUP, _BYTES = 32, 16  # numbers that share a power of two, and the bytes that hold them
_BIAS = 127  # of the exponent in a scale's byte
_BLOCK = 128
_BLOCKS, _SCALES, _FACTORS = "_blocks", "_scales", "_scale_inv"

Read = Callable[[str, Index], np.ndarray]


class Packed(Protocol):
    """A quantized tensor that reads like the tensor that it stands for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self, read: Read, index: Index) -> np.ndarray: ...


@dataclass(frozen=True)
class Mxfp4:
    """Experts' matrices [E, inputs, outputs], stored as [E, outputs, inputs / 32, 16] bytes.

    Reference: Open Compute Project, "OCP Microscaling Formats (MX) Specification", 2023.
    """

    name: str
    shape: tuple[int, ...]

    def read(self, read: Read, index: Index) -> np.ndarray:
        """Return a slice in bfloat16, which holds these numbers exactly."""
        experts, inputs, outputs = index
        groups = slice(inputs.start // _GROUP, -(-inputs.stop // _GROUP))
        first = inputs.start - groups.start * _GROUP
        rows = []
        for expert in range(experts.start, experts.stop):
            at = (slice(expert, expert + 1), outputs, groups)
            packed = read(self.name + _BLOCKS, (*at, slice(0, _BYTES)))[0]
            powers = read(self.name + _SCALES, at)[0].astype(np.int32) - _BIAS
            # Of the two numbers of a byte the lower four bits come first.
            pairs = np.stack([_FP4[packed & 15], _FP4[packed >> 4]], axis=-1)
            x = np.ldexp(pairs.reshape(*powers.shape, _GROUP), powers[..., None])
            x = x.reshape(len(x), -1)[:, first : first + inputs.stop - inputs.start]
            rows.append(x.T.astype(ml_dtypes.bfloat16))
        return np.stack(rows)


@dataclass(frozen=True)
class Fp8Blocks:
    """A matrix of which each block of 128 x 128 numbers has a factor."""

    name: str
    shape: tuple[int, ...]

    def read(self, read: Read, index: Index) -> np.ndarray:
        """Return a slice in float32."""
        blocks = tuple(slice(s.start // _BLOCK, -(-s.stop // _BLOCK)) for s in index)
        factors = read(self.name + _FACTORS, blocks).astype(np.float32)
        for axis, (wanted, block) in enumerate(zip(index, blocks, strict=True)):
            inside = wanted.start - block.start * _BLOCK
            factors = factors.repeat(_BLOCK, axis)
            span = slice(inside, inside + wanted.stop - wanted.start)
            factors = factors[(slice(None),) * axis + (span,)]
        return read(self.name, index).astype(np.float32) * factors


@dataclass(frozen=True)
class UnpackedFiles(TensorFiles):
    """The tensors of a folder, of which some are quantized.

    Attributes:
      packed: name -> tensor.
      inside: the tensors as they are in the files.
    """

    packed: Mapping[str, Packed] = field(default_factory=dict)
    inside: TensorFiles | None = None

    def read(self, name: str, index: Index) -> np.ndarray:
        """Read a slice of one tensor; of a quantized one, the bytes of this slice alone."""
        assert self.inside is not None
        if name in self.packed:
            return self.packed[name].read(self.inside.read, index)
        return self.inside.read(name, index)


def unpacked(files: TensorFiles) -> TensorFiles:
    """Return a folder's tensors with those that are quantized as what they stand for.

    Raises:
      ValueError: factors that do not fit their matrix.
    """
    shapes, packed = files.shapes, {}
    for name, shape in shapes.items():
        bare = name.removesuffix(_BLOCKS)
        if bare != name and bare + _SCALES in shapes and len(shape) == 4:
            experts, outputs, groups, size = shape
            if size == _BYTES and shapes[bare + _SCALES] == shape[:-1]:
                packed[bare] = Mxfp4(bare, (experts, groups * _GROUP, outputs))
        elif name + _FACTORS in shapes and len(shape) == 2:
            blocks = tuple(-(-n // _BLOCK) for n in shape)
            found = shapes[name + _FACTORS]
            if found != blocks:
                raise ValueError(
                    f"{files.folder}: {name}{_FACTORS} is {list(found)}, expected {list(blocks)}: "
                    f"a factor for each {_BLOCK} x {_BLOCK} numbers of {name}, {list(shape)}."
                )
            packed[name] = Fp8Blocks(name, shape)
    if not packed:
        return files
    parts = {name + end for name in packed for end in (_BLOCKS, _SCALES, _FACTORS)}
    kept = {name: shape for name, shape in shapes.items() if name not in parts}
    return UnpackedFiles(
        files.folder,
        files.file_of,
        kept | {name: tensor.shape for name, tensor in packed.items()},
        {name: files.dtypes[name] for name in kept} | dict.fromkeys(packed, "BF16"),
        packed=packed,
        inside=files,
    )
