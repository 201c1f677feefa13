"""Values of global arrays on every process's host."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def on_host(x: jax.Array) -> np.ndarray:
    """Return the whole array on every process; all of them have to call it.

    Cost: nothing is sent if this process has all of it; otherwise an all-gather.

    Raises:
      ValueError: the array is spread over processes and its sharding has no mesh.
    """
    if x.is_fully_addressable:
        return np.asarray(x)
    if not x.is_fully_replicated:
        if not isinstance(x.sharding, NamedSharding):
            raise ValueError(f"on_host: expected a NamedSharding, got {x.sharding}.")
        x = _replicate(x.sharding.mesh)(x)
    return np.asarray(x.addressable_data(0))


@functools.lru_cache(maxsize=16)
def _replicate(mesh: Mesh):
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
