"""The MLP of a decoding step, which reads each weight tile once for all microbatches."""

from parallax.kernels.cache_tiled_mlp.api import cache_tiled_mlp, runs_kernel
from parallax.kernels.cache_tiled_mlp.reference import Matrix

__all__ = ["Matrix", "cache_tiled_mlp", "runs_kernel"]
