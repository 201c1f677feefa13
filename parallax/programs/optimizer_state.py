"""The state of any optax transformation, told apart: arrays that belong to parameters, and others.

A transformation that works weight by weight keeps copies of the parameters' tree (moments), whole
or with some parameters masked out, beside counts and settings.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import NamedSharding

LARGEST_SETTING = 1024  # elements of an array that belongs to no parameter


def map_copies(
    copy: Callable[[str, nnx.State], Any], other: Callable[[str, Any], Any], state: Any
) -> Any:
    """Map over a state: `copy` over its copies of the parameters' tree, `other` over other arrays.

    Args:
      copy: a function of the path in the state and a copy, without the parameters masked out of it;
        it returns the same tree with other values.
      other: a function of the path in the state and an array.
      state: an optimizer's state, of arrays or shapes.
    """

    def change(path, x):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(x, nnx.State):
            return other(where, x)
        flat = dict(nnx.to_flat_state(x))
        masked = {p: w for p, w in flat.items() if _is_masked(w)}
        present = [(p, w) for p, w in flat.items() if p not in masked]
        changed = copy(where, nnx.from_flat_state(present))
        return nnx.from_flat_state([*nnx.to_flat_state(changed), *masked.items()])

    is_copy = lambda x: isinstance(x, nnx.State)  # noqa: E731
    return jax.tree_util.tree_map_with_path(change, state, is_leaf=is_copy)


def state_shardings(
    state: Any, params: nnx.State, shardings: nnx.State, replicated: NamedSharding
) -> Any:
    """Return the NamedShardings of a state: a moment has its parameter's, any other array is whole.

    Args:
      state: the shapes of an optimizer's state.
      params: the shapes of the parameters.
      shardings: the NamedShardings of the parameters' moments.
      replicated: the sharding of all other arrays.

    Raises:
      ValueError: an array of the state that has another shape than its parameter, or a large one
        that belongs to no parameter; it is named.
    """
    shapes, split = dict(nnx.to_flat_state(params)), dict(nnx.to_flat_state(shardings))

    def of_copy(where, copy):
        def sharding(path, moment):
            if moment.shape != shapes[path].shape:
                _refuse(f"{where}/{'/'.join(map(str, path))}", moment.shape,
                        f"its parameter has shape {list(shapes[path].shape)}")  # fmt: skip
            return moment.replace(split[path].get_value())

        return nnx.map_state(sharding, copy)

    def of_other(where, x):
        if x.size > LARGEST_SETTING:
            _refuse(where, x.shape, "it belongs to no parameter")
        return replicated

    return map_copies(of_copy, of_other, state)


def _refuse(where: str, shape: tuple[int, ...], why: str) -> None:
    raise ValueError(
        f"TrainStep: the optimizer's state at {where} has shape {list(shape)}, and {why}: how to "
        "split it over devices is not known. Use a transformation that keeps one value per weight, "
        "such as those of AdamW, Lion, Muon or momentum."
    )


def _is_masked(variable: Any) -> bool:
    return isinstance(variable.get_value(), optax.MaskedNode)
