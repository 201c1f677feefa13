"""The training state in the model's own layout: what one strategy saves another restores.

It has no layers that pad stages and no columns that pad a vocabulary.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from parallax.distributed.first_calls import called_together
from parallax.programs.optimizer_state import map_copies
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainState, TrainStep


def named(tree: Any) -> dict[str, Any]:
    """Return the leaves by their path, so that names in files do not depend on classes."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat}


def unnamed(arrays: Mapping[str, Any], like: Any) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named(like)])


def _over_params(change: Callable[[nnx.State], Any], state: TrainState) -> TrainState:
    """Apply `change` to the parameters and to the optimizer's trees of the same structure."""
    return map_copies(lambda _, copy: change(copy), lambda _, x: x, state)


def _is_unpadded(sharded: ShardedTransformer) -> bool:
    same = len(set(sharded.groups)) <= 1 and sharded.chunks == 1
    return same and sharded.columns == sharded.config.vocab_size


def whole(train: TrainStep, state: TrainState) -> TrainState:
    """Return the state in the model's own layout."""
    if _is_unpadded(train.sharded):
        return state
    return _unsharding(train)(state)


def placed(train: TrainStep, state: TrainState, mesh) -> TrainState:
    """Shard a state in the model's own layout; the inverse of `whole`."""
    if _is_unpadded(train.sharded):
        return state
    return _sharding(train, mesh)(state)


@functools.lru_cache(maxsize=16)
def _unsharding(train: TrainStep) -> Callable[[TrainState], TrainState]:
    unshard = functools.partial(_over_params, train.sharded.unshard)
    return called_together("the state to save", jax.jit(unshard))


@functools.lru_cache(maxsize=16)
def _sharding(train: TrainStep, mesh) -> Callable[[TrainState], TrainState]:
    shard = functools.partial(_over_params, train.sharded.shard)
    return called_together(
        "the restored state", jax.jit(shard, out_shardings=train.shardings(mesh))
    )


def abstract_whole(train: TrainStep, mesh) -> TrainState:
    """Return shapes in the model's own layout, sharded as under the strategy if sizes divide."""
    placed = train.abstract_state(mesh)
    if _is_unpadded(train.sharded):
        return placed
    shapes = jax.eval_shape(functools.partial(_over_params, train.sharded.unshard), placed)

    def sharded(x, like):
        spec = [
            axes if axes is None or not size % _parts(mesh, axes) else None
            for size, axes in zip(x.shape, _padded(like.sharding.spec, x.ndim), strict=True)
        ]
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(sharded, shapes, placed)


def _padded(spec: PartitionSpec, ndim: int) -> tuple:
    return (*spec, *(None,) * (ndim - len(spec)))


def _parts(mesh, axes) -> int:
    size = 1
    for axis in (axes,) if isinstance(axes, str) else axes:
        size *= mesh.shape[axis]
    return size
