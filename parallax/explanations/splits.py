"""How arguments and results are split over the mesh, read off a compiled program."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from parallax.explanations.compiled import Program
from parallax.explanations.facts import ArraySplit
from parallax.explanations.flat_program import FlatProgram
from parallax.hlo.shapes import Shape

UNKNOWN_AXES = "?"


def argument_splits(program: Program, flat: FlatProgram | None) -> tuple[ArraySplit, ...]:
    """Return the split of each argument that the compiled program has, in its order."""
    entry = program.module.computation(program.module.entry)
    parameters = sorted((i for i in entry.instructions if i.parameter >= 0),
                        key=lambda i: i.parameter)  # fmt: skip
    kept = [] if flat is None else [k for k in sorted(flat.kept) if k >= 0]
    if flat is None or len(kept) != len(parameters):
        return tuple(_local(i.op_name or i.name, i.shape) for i in parameters)
    return tuple(
        _split(flat.names[k], i.shape, flat.args[k].shape, flat.args[k].sharding, flat,
               donated=flat.donated[k])
        for k, i in zip(kept, parameters, strict=True)
    )  # fmt: skip


def result_splits(program: Program, flat: FlatProgram | None) -> tuple[ArraySplit, ...]:
    """Return the split of each result."""
    entry = program.module.computation(program.module.entry)
    root = next(i for i in entry.instructions if i.is_root)
    shapes = root.shape.elements or (root.shape,)
    if flat is None or len(shapes) != len(flat.out_shardings):
        return tuple(_local(f"result {n}", shape) for n, shape in enumerate(shapes))
    names = _result_names(flat, len(shapes))
    return tuple(
        _split(name, shape, tuple(v.aval.shape), sharding, flat)
        for name, shape, v, sharding in zip(
            names, shapes, flat.jaxpr.outvars, flat.out_shardings, strict=True
        )
    )


def _result_names(flat: FlatProgram, count: int) -> Sequence[str]:
    paths = getattr(flat.jaxpr.debug_info, "result_paths", None)
    if not isinstance(paths, tuple | list) or len(paths) != count:
        return [f"result {n}" for n in range(count)]
    return [str(path) or f"result {n}" for n, path in enumerate(paths)]


def _local(name: str, shape: Shape) -> ArraySplit:
    return ArraySplit(name, shape.dtype, (), shape.dims, (), "", shape.n_bytes)


def _split(
    name: str, shape: Shape, dims: tuple[int, ...], sharding: Any, flat: FlatProgram,
    donated: bool = False,
) -> ArraySplit:  # fmt: skip
    if len(shape.dims) != len(dims):
        return _local(name, shape)
    sizes = {axis: size for axis, size in flat.mesh.shape.items() if size > 1}
    if sharding is None:
        axes = _inferred(dims, shape.dims, sizes)
    else:
        axes = _declared(tuple(sharding.spec), len(dims), sizes)
    by = "XLA" if sharding is None else "you"
    return ArraySplit(name, shape.dtype, dims, shape.dims, axes, by, shape.n_bytes, donated)


def _declared(
    spec: tuple[Any, ...], rank: int, sizes: Mapping[str, int]
) -> tuple[tuple[str, ...], ...]:
    entries = (*spec, *(None,) * (rank - len(spec)))
    named = (e if isinstance(e, tuple) else (e,) for e in entries)
    return tuple(tuple(str(a) for a in names if a in sizes) for names in named)


def _inferred(
    dims: tuple[int, ...], local: tuple[int, ...], sizes: Mapping[str, int]
) -> tuple[tuple[str, ...], ...]:
    """Name the axes that split each dim, where sizes alone say which; "?" where they do not."""
    left, found = dict(sizes), []
    for whole, part in zip(dims, local, strict=True):
        parts = -(-whole // part) if part else 1
        if parts == 1:
            found.append(())
            continue
        fitting = [
            names
            for count in range(1, len(left) + 1)
            for names in itertools.combinations(left, count)
            if math.prod(left[a] for a in names) == parts
        ]
        names = fitting[0] if len(fitting) == 1 else (UNKNOWN_AXES,)
        found.append(names)
        left = {a: n for a, n in left.items() if a not in names}
    return tuple(found)
