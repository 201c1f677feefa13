"""The MLP of a decoding step: a slab of weights is read once and serves all microbatches."""

from parallax.kernels.cache_tiled_mlp.api import cache_tiled_mlp, runs_kernel
from parallax.kernels.cache_tiled_mlp.reference import Matrix

__all__ = ["Matrix", "cache_tiled_mlp", "runs_kernel"]
