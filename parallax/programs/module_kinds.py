"""The three kinds of user modules as one value: NNX modules, Linen modules and callable pytrees.

A callable pytree is any registered pytree with a `__call__`, such as an Equinox module: its arrays
are the state, its other leaves are held fixed.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.errors import TraceContextError
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

Names = tuple[str | None, ...]

# Floating-point state that a training step does not differentiate.
_UNTRAINED = (nnx.BatchStat, nnx.Cache, nnx.Intermediate, nnx.RngState)
_UNTRAINED_COLLECTIONS = ("batch_stats", "cache", "intermediates")


@dataclass(frozen=True)
class Leaf:
    """One array of a module's state.

    Attributes:
      path: its path, such as "layers/0/kernel".
      shape: its shape and dtype.
      names: the logical axis of each dim; None where the module names none.
      is_parameter: whether it is neither a statistic, a cache, a key nor a count. Integers of two
        dims or more are quantized weights.
    """

    path: str
    shape: jax.ShapeDtypeStruct
    names: Names | None
    is_parameter: bool

    @property
    def is_trained(self) -> bool:
        """Whether it has a gradient."""
        return self.is_parameter and jnp.issubdtype(self.shape.dtype, jnp.floating)

    @property
    def nbytes(self) -> int:
        return self.shape.size * self.shape.dtype.itemsize


@dataclass(frozen=True)
class UserModule:
    """A user module as functions of its state.

    Attributes:
      name: the name of its class.
      kind: "NNX", "Linen" or "pytree".
      shapes: the state, a pytree of shapes.
      leaves: the state's arrays, in the order of `jax.tree.leaves(shapes)`.
      make: makes the state on one device.
      run: computes the output from the state and tokens, [B, L] int32.
      part_dtypes: (path, class, dtype) of every part with a floating dtype of its own.
    """

    name: str
    kind: str
    shapes: Any
    leaves: tuple[Leaf, ...]
    make: Callable[[], Any]
    run: Callable[[Any, jax.Array], Any]
    part_dtypes: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class WithLogicalAxes:
    """A constructor of a user module, with logical axes for some of its arrays.

    Attributes:
      construct: makes the module, or a Linen module.
      logical_axes: (glob of paths, logical axis of each dim) pairs; the first that matches counts.
    """

    construct: Callable[[], Any] | nn.Module
    logical_axes: tuple[tuple[str, Names], ...]

    @classmethod
    def of(
        cls, construct: Any, logical_axes: Mapping[str, Sequence[str | None]]
    ) -> "WithLogicalAxes":
        return cls(construct, tuple((glob, tuple(n)) for glob, n in logical_axes.items()))


Constructor = Callable[[], Any] | nn.Module | WithLogicalAxes


def user_module(construct: Constructor, tokens: jax.ShapeDtypeStruct) -> UserModule:
    """Return a user module as functions of its state; nothing is materialised.

    Args:
      construct: makes the module, or a Linen module.
      tokens: the shape that a Linen module is initialised with, [B, L] int32.

    Raises:
      ValueError: a constructor that changes something made outside of it or makes something else,
        or a glob that matches no array.
    """
    if isinstance(construct, WithLogicalAxes):
        module = user_module(construct.construct, tokens)
        return replace(module, leaves=_named(module.leaves, construct.logical_axes))
    if isinstance(construct, nn.Module):
        return _linen(construct, tokens)
    try:
        with nnx.use_eager_sharding(False):
            made: list[Any] = []
            jax.eval_shape(lambda: made.append(construct()))
            if isinstance(made[0], nnx.Module):
                return _nnx(construct)
    except TraceContextError as error:
        raise ValueError(
            "Program: the function that makes the module changes something made outside of it, "
            f"such as an nnx.Rngs ({error}). Make it inside: lambda: MyModule(nnx.Rngs(0))."
        ) from error
    if isinstance(made[0], nn.Module):
        return _linen(construct(), tokens)
    if not callable(made[0]) or not has_arrays(made[0]):
        raise ValueError(
            "Program: the function must make an NNX module, a Linen module or a callable pytree "
            f"with arrays, got {type(made[0]).__name__}. Write lambda: MyModule(...)."
        )
    return _pytree(construct)


def _nnx(construct: Callable[[], nnx.Module]) -> UserModule:
    found: list[tuple[str, nnx.GraphDef, tuple[tuple[str, str, str], ...]]] = []

    def make():
        with nnx.use_eager_sharding(False):
            return nnx.split(_with_plain_arrays(construct()))[1]

    def split():
        module = _with_plain_arrays(construct())
        graph, state = nnx.split(module)
        dtypes = ((*item, getattr(item[1], "dtype", None)) for item in nnx.iter_modules(module))
        parts = tuple(
            ("/".join(map(str, path)), f"nnx.{type(part).__name__}", jnp.dtype(dtype).name)
            for path, part, dtype in dtypes
            if _is_floating_dtype(dtype)
        )
        found.append((type(module).__name__, graph, parts))
        return state

    state = jax.eval_shape(split)
    name, graph, parts = found[0]

    def run(state, tokens):
        with nnx.use_eager_sharding(False):
            return nnx.merge(graph, state)(tokens)

    leaves = []
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    for path, variable in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_variable):
        names = getattr(variable, "out_sharding", None) if is_variable(variable) else None
        is_parameter = is_variable(variable) and not isinstance(variable, _UNTRAINED)
        for inner, array in jax.tree_util.tree_leaves_with_path(variable):
            # Behind the variable's own value: the path into a variable that holds a tree.
            leaves.append(_leaf((*path, *inner[1:]), array, names, is_parameter))
    return UserModule(name, "NNX", state, tuple(leaves), make, run, parts)


def _with_plain_arrays(module: nnx.Module) -> nnx.Module:
    """Return a new module whose arrays that are no variables are state also while it is traced.

    NNX takes a traced array, but not a concrete one, for a static attribute.
    """
    for _, part in nnx.iter_modules(module):
        for name, value in list(vars(part).items()):
            if isinstance(value, Tracer):
                setattr(part, name, nnx.data(value))
    return module


def _linen(module: nn.Module, tokens: jax.ShapeDtypeStruct) -> UserModule:
    def boxed():
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        variables = module.init(rngs, jnp.zeros(tokens.shape, tokens.dtype))
        return {name: x for name, x in variables.items() if name != "intermediates"}

    def run(state, tokens):
        # Any stream that the module asks for and that is not named here is drawn from "params".
        rngs = {"params": jax.random.key(2), "dropout": jax.random.key(3)}
        changed = [name for name in state if name != "params"]
        return module.apply(state, tokens, rngs=rngs, mutable=changed)[0]

    is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
    leaves = []
    shapes = jax.eval_shape(boxed)
    for path, box in jax.tree_util.tree_leaves_with_path(shapes, is_leaf=is_box):
        is_parameter = path[0].key not in _UNTRAINED_COLLECTIONS
        array = box.unbox() if is_box(box) else box
        leaves.append(_leaf(path, array, getattr(box, "names", None), is_parameter))
    make = jax.jit(lambda: nn.meta.unbox(boxed()))
    name = type(module).__name__
    return UserModule(name, "Linen", nn.meta.unbox(shapes), tuple(leaves), make, run)


def _pytree(construct: Callable[[], Any]) -> UserModule:
    def make():
        return [x for x in jax.tree.leaves(construct()) if _is_array(x)]

    # What is no array leaves the abstract evaluation as it is: structure, functions, numbers.
    found: list[tuple[Any, ...]] = []

    def split():
        module = construct()
        paths_leaves, structure = jax.tree_util.tree_flatten_with_path(module)
        others = [None if _is_array(x) else x for _, x in paths_leaves]
        paths = [path for path, x in paths_leaves if _is_array(x)]
        found.append((type(module).__name__, structure, others, paths))
        return [x for _, x in paths_leaves if _is_array(x)]

    shapes = jax.eval_shape(split)
    name, structure, others, paths = found[0]

    def run(state, tokens):
        arrays = iter(state)
        leaves = [next(arrays) if x is None else x for x in others]
        return jax.tree.unflatten(structure, leaves)(tokens)

    leaves = tuple(_leaf(p, x, None, True) for p, x in zip(paths, shapes, strict=True))
    return UserModule(name, "pytree", shapes, leaves, make, run)


def _leaf(path, array: jax.ShapeDtypeStruct, names: Any, is_parameter: bool) -> Leaf:
    text = jax.tree_util.keystr(path, simple=True, separator="/")
    if isinstance(names, NamedSharding):
        names = names.spec
    if isinstance(names, PartitionSpec):
        names = (*names, *(None,) * (array.ndim - len(names)))
    is_weight = jnp.issubdtype(array.dtype, jnp.floating) or (
        jnp.issubdtype(array.dtype, jnp.integer) and array.ndim >= 2
    )
    shape = jax.ShapeDtypeStruct(array.shape, array.dtype)
    return Leaf(text, shape, None if names is None else tuple(names), is_parameter and is_weight)


def _named(
    leaves: tuple[Leaf, ...], logical_axes: tuple[tuple[str, Names], ...]
) -> tuple[Leaf, ...]:
    for glob, _ in logical_axes:
        if not any(fnmatch.fnmatchcase(leaf.path, glob) for leaf in leaves):
            raise ValueError(
                f"Program: logical_axes: '{glob}' matches no array of the module. Its arrays: "
                f"{', '.join(leaf.path for leaf in leaves)}."
            )

    def name(leaf: Leaf) -> Leaf:
        for glob, names in logical_axes:
            if fnmatch.fnmatchcase(leaf.path, glob):
                return replace(leaf, names=names)
        return leaf

    return tuple(map(name, leaves))


def has_arrays(tree: Any) -> bool:
    """Return whether a pytree holds any array."""
    return any(map(_is_array, jax.tree.leaves(tree)))


def _is_array(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray)


def _is_floating_dtype(dtype: Any) -> bool:
    try:
        return dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False
