"""The arguments of a user's function as abstract arrays with shardings."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

Specs = Sequence[Any]


def is_abstract(x: Any) -> bool:
    """Return whether a leaf has a shape and a dtype."""
    return hasattr(x, "shape") and hasattr(x, "dtype")


def is_number(x: Any) -> bool:
    """Return whether a leaf is a Python number, which `jax.jit` traces too."""
    return isinstance(x, bool | int | float | complex)


def mesh_of_arguments(args: Any) -> Any:
    """Return the mesh of the first leaf that has a NamedSharding; None if none has."""
    for leaf in jax.tree.leaves(args):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and not sharding.mesh.empty:
            return sharding.mesh
    return None


def spec_per_argument(specs: Any, count: int, caller: str) -> Specs | None:
    """Return `in_specs` with one entry for each argument: one spec alone is that of all.

    Raises:
      ValueError: they are neither a spec nor a list or tuple; their number is checked later.
    """
    if specs is None or isinstance(specs, PartitionSpec | Sharding):
        return None if specs is None else (specs,) * count
    if not isinstance(specs, list | tuple):
        raise ValueError(
            f"{caller}: in_specs: expected a tuple with an entry for each argument, or one "
            f"PartitionSpec for all, got {type(specs).__name__}. Write in_specs=(...,)."
        )
    return tuple(specs)


def abstract_arguments(args: tuple, specs: Specs | None, mesh: Mesh, caller: str) -> tuple:
    """Return the arguments with their arrays as `jax.ShapeDtypeStruct`, sharded on `mesh`.

    Args:
      args: pytrees of arrays, abstract or not; other leaves stay as they are.
      specs: for each argument a PartitionSpec, a NamedSharding or None (replicated), or a prefix
        tree of them. None keeps the shardings that the arrays have; an array without one is left
        to XLA, as in `jax.jit`.
      caller: the start of error messages.

    Raises:
      ValueError: another number of specs than arguments, a spec that is no prefix of its argument,
        or one that its array cannot have; the message names the array.
    """
    if specs is None:
        return tuple(jax.tree.map(lambda x: _abstract(x, mesh), arg) for arg in args)
    if len(specs) != len(args):
        raise ValueError(
            f"{caller}: {len(specs)} in_specs for {len(args)} arguments. Give one for each."
        )
    return tuple(
        _with_specs(arg, spec, mesh, f"{caller}: argument {i}")
        for i, (arg, spec) in enumerate(zip(args, specs, strict=True))
    )


def on_mesh(shardings: Any, mesh: Mesh, name: str) -> Any:
    """Return a tree of specs and shardings with every NamedSharding moved to `mesh`.

    Raises:
      ValueError: a spec names an axis that the mesh does not have, or one twice; starts with
        `name` and the path.
    """

    def moved(path, s):
        if not isinstance(s, PartitionSpec | NamedSharding):
            return s
        _check_axes(getattr(s, "spec", s), mesh, name + jax.tree_util.keystr(path))
        return moved_sharding(s, mesh)

    return jax.tree_util.tree_map_with_path(moved, shardings, is_leaf=_is_spec)


def _is_spec(x: Any) -> bool:
    return x is None or isinstance(x, PartitionSpec | Sharding)


def moved_sharding(spec: Any, mesh: Mesh) -> NamedSharding:
    if isinstance(spec, NamedSharding):
        if spec.memory_kind == "pinned_host":
            # Devices that are not there list no memories: over them JAX forgets the kind.
            return NamedSharding(mesh.abstract_mesh, spec.spec, memory_kind="pinned_host")
        # What is ordinary memory on the user's devices is ordinary memory on the cluster's.
        return NamedSharding(mesh, spec.spec)
    return NamedSharding(mesh, PartitionSpec() if spec is None else spec)


def _abstract(x: Any, mesh: Mesh, spec: Any = ...) -> Any:
    if not is_abstract(x):
        return x  # a number keeps its weak type; anything else is the function's own business
    own = getattr(x, "sharding", None)
    sharding = None
    if spec is not ...:
        sharding = moved_sharding(spec, mesh)
    elif isinstance(own, NamedSharding):
        sharding = moved_sharding(own, mesh)
    return jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding, weak_type=getattr(x, "weak_type", False)
    )


def _with_specs(arg: Any, specs: Any, mesh: Mesh, name: str) -> Any:
    """Give each array of an argument the spec that a prefix tree has for it."""
    prefixes, tree = jax.tree_util.tree_flatten_with_path(specs, is_leaf=_is_spec)
    try:
        parts = tree.flatten_up_to(arg)
    except ValueError as error:
        raise ValueError(
            f"{name}: its in_specs are no prefix of it: {str(error).splitlines()[0]}"
        ) from error
    made = []
    for (above, spec), part in zip(prefixes, parts, strict=True):
        if not _is_spec(spec):
            raise ValueError(
                f"{name}: its in_specs: expected a PartitionSpec, a NamedSharding or "
                f"None, got {type(spec).__name__}."
            )
        made.append(
            jax.tree_util.tree_map_with_path(
                lambda path, x, spec=spec, above=above: _checked(
                    x, spec, mesh, name + jax.tree_util.keystr((*above, *path))
                ),
                part,
            )
        )
    return tree.unflatten(made)


def _checked(x: Any, spec: Any, mesh: Mesh, name: str) -> Any:
    if not is_abstract(x):
        return x
    sharding = getattr(spec, "spec", spec) or ()
    if len(sharding) > len(x.shape):
        raise ValueError(
            f"{name}: {sharding} has {len(sharding)} entries for {len(x.shape)} dims of "
            f"{tuple(x.shape)}. Give one for each dim at most."
        )
    _check_axes(sharding, mesh, name)
    for dim, entry in enumerate(sharding):
        count = math.prod(mesh.shape[axis] for axis in _axes(entry))
        if x.shape[dim] % count:
            raise ValueError(
                f"{name}: dim {dim} of {tuple(x.shape)} is not a multiple of the {count} "
                f"devices that {sharding} splits it over. Pad it, or leave the dim whole."
            )
    return _abstract(x, mesh, spec)


def _axes(entry: Any) -> tuple:
    """Return the mesh axes of one entry of a spec."""
    axes = entry if isinstance(entry, tuple) else (entry,)
    return tuple(a for a in axes if a is not None and a is not PartitionSpec.UNCONSTRAINED)


def _check_axes(spec: Any, mesh: Mesh, name: str) -> None:
    """Raise ValueError unless a spec names axes of the mesh, each once."""
    seen = set()
    for axis in (axis for entry in spec for axis in _axes(entry)):
        if axis not in mesh.shape:
            raise ValueError(
                f"{name}: {spec} names mesh axis {axis!r}, the mesh has "
                f"{', '.join(map(str, mesh.shape)) or 'none'}."
            )
        if axis in seen:
            raise ValueError(
                f"{name}: {spec} names mesh axis {axis!r} twice. An axis splits one dim at most."
            )
        seen.add(axis)
