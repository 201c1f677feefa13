"""The product of a decoding step's few tokens by a packed weight, read packed."""

from parallax.kernels.packed_matmul.api import packed_matmul, runs_kernel
from parallax.kernels.packed_matmul.reference import PackedMatrix

__all__ = ["PackedMatrix", "packed_matmul", "runs_kernel"]
