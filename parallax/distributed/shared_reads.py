"""Arrays that processes read from files together: each reads a part, and devices exchange parts.

Without it every process reads all that its devices hold, and what several processes hold is read
several times from one file system.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from parallax.distributed.first_calls import called_together
from parallax.distributed.processes import process_count

_LEAST_BYTES = 1 << 16  # of a shard: reading less twice costs less than exchanging it


def split_replicas(
    sharding: NamedSharding, shape: Sequence[int], itemsize: int, dims: Sequence[int] = ()
) -> NamedSharding:
    """Return a sharding whose shards no two processes share, as far as sizes divide.

    Mesh axes that cross processes and over which an array is replicated split it too.

    Args:
      sharding: the sharding that the array is to have in the end.
      shape, itemsize: global shape, and bytes of an element.
      dims: the dims to split, those whose slices are cheapest to read first; () is their order.

    Returns:
      `sharding` itself with one process, for small arrays and where no size divides.
    """
    mesh = sharding.mesh
    assert isinstance(mesh, Mesh)
    if process_count() == 1:
        return sharding
    parts = [_axes(entry) for entry in _entries(sharding, len(shape))]
    used = {axis for axes in parts for axis in axes}
    for axis in _crossing(mesh):
        if axis in used or itemsize * int(np.prod(_local(mesh, parts, shape))) < _LEAST_BYTES:
            continue
        for dim in dims or range(len(shape)):
            if not _local(mesh, parts, shape)[dim] % mesh.shape[axis]:
                parts[dim] = (*parts[dim], axis)
                break
    spec = PartitionSpec(*(axes or None for axes in parts))
    return NamedSharding(mesh, spec)


def gather_replicas(x: jax.Array, sharding: NamedSharding) -> jax.Array:
    """Return an array that was read as `split_replicas` says with the sharding given there.

    The bits stay as they are. All processes have to call it.

    Cost: an all-gather over the mesh axes that `split_replicas` added; nothing without any.
    """
    if x.sharding.is_equivalent_to(sharding, x.ndim):
        return x
    assert isinstance(x.sharding, NamedSharding)
    gather = _gather(x.sharding, sharding, x.shape, x.dtype.name)
    return jax.block_until_ready(gather(x))


@functools.lru_cache(maxsize=256)
def _gather(split: NamedSharding, whole: NamedSharding, shape: tuple[int, ...], dtype: str):
    before, after = _entries(split, len(shape)), _entries(whole, len(shape))

    def gather(shard: jax.Array) -> jax.Array:
        for dim, (axes, kept) in enumerate(zip(before, after, strict=True)):
            if added := _axes(axes)[len(_axes(kept)) :]:
                shard = lax.all_gather(shard, added, axis=dim, tiled=True)
        return shard

    # A copy of everything is not known to be one: check_vma would want a reduction.
    mapped = jax.shard_map(
        gather, mesh=split.mesh, in_specs=split.spec, out_specs=whole.spec, check_vma=False
    )
    what = f"exchanging {dtype} {list(shape)}"
    return called_together(what, jax.jit(mapped, out_shardings=whole))


def _crossing(mesh: Mesh) -> list[str]:
    """Return the mesh axes along which the process changes, in order."""
    process = np.vectorize(lambda d: d.process_index, otypes=[int])(mesh.devices)
    return [
        name for axis, name in enumerate(mesh.axis_names) if np.any(np.diff(process, axis=axis))
    ]


def _entries(sharding: NamedSharding, ndim: int) -> tuple:
    spec = sharding.spec
    return (*spec, *(None,) * (ndim - len(spec)))


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _local(mesh: Mesh, parts: list[tuple[str, ...]], shape: Sequence[int]) -> list[int]:
    """Return the shape of one shard."""
    return [
        size // int(np.prod([mesh.shape[axis] for axis in axes], dtype=int))
        for size, axes in zip(shape, parts, strict=True)
    ]
