"""The cross-check of a ledger: collectives counted in the jaxpr, where mesh axes have names."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from jax.extend.core import ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]
from jax.sharding import AxisType

from parallax.bounds import wire_bytes
from parallax.hlo.branches import Trips, sides_of_jaxpr
from parallax.hlo.collectives import RAGGED, Collective, Ledger
from parallax.hlo.groups import axes_of_pairs
from parallax.hlo.ragged import RaggedBytes, with_ragged_bytes
from parallax.hlo.shapes import HloError

_KINDS = {
    "psum": "all-reduce", "psum_invariant": "all-reduce", "pmax": "all-reduce",
    "pmin": "all-reduce", "all_gather": "all-gather", "all_gather_invariant": "all-gather",
    "all_gather_reduced": "all-gather", "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all", "ppermute": "collective-permute",
    "ragged_all_to_all": RAGGED,
}  # fmt: skip
# Primitives that name mesh axes and move nothing.
_LOCAL = {"axis_index", "pcast", "pvary", "reduced_vary_cast", "vary_unreduced_cast"}


def jaxpr_ledger(
    closed_jaxpr: ClosedJaxpr,
    mesh_axes: Mapping[str, int],
    *,
    ragged_bytes: RaggedBytes | None = None,
    trips: Trips | None = None,
) -> Ledger:
    """Count the collectives of a traced program under one shard_map, loops multiplied out.

    Args:
      closed_jaxpr: `jax.make_jaxpr(f)(...)` or `jax.jit(f).trace(...).jaxpr`.
      mesh_axes: mesh axis -> size, in mesh order.
      ragged_bytes: as for `read_ledger`, so that both count the same rows.
      trips: as for `read_ledger`, of branches alone.

    Raises:
      HloError: a collective in a branch that `trips` does not know or in a loop of unknown trip
        count, over an axis that `mesh_axes` lacks, or one that is not understood; a shard_map that
        is partly automatic.
    """
    collectives = [
        replace(c, count=int(c.count) if c.count == int(c.count) else float(c.count))
        for c in _walk(closed_jaxpr.jaxpr, 1, mesh_axes, trips)
    ]
    return Ledger(tuple(with_ragged_bytes(c, ragged_bytes) for c in collectives))


def _walk(
    jaxpr: Any, count: float | Fraction, mesh_axes: Mapping[str, int], trips: Trips | None
) -> Iterator[Collective]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _KINDS:
            yield from _collective(equation, _KINDS[name], count, mesh_axes)
            continue
        if _axes(equation) and name not in _LOCAL:
            raise HloError(f"jaxpr: primitive '{name}' over a mesh axis is not understood.")
        times = count
        if name == "scan":
            times = count * equation.params["length"]
        if name == "cond" and (known := sides_of_jaxpr(equation.params["branches"], trips)):
            for taken, branch in zip(known, equation.params["branches"], strict=True):
                inner = getattr(branch, "jaxpr", branch)
                yield from _walk(inner, times * taken.executions, mesh_axes, trips)
            continue
        for inner in _inner(equation.params):
            found = list(_walk(inner, times, mesh_axes, trips))
            if found and name in ("cond", "while"):
                raise HloError(
                    f"jaxpr: {found[0].kind} inside '{name}': how often it runs is unknown."
                )
            if found and name == "shard_map" and (axes := _automatic_axes(equation, mesh_axes)):
                raise HloError(
                    f"jaxpr: a shard_map leaves mesh axes {sorted(axes)} to the partitioner, so "
                    "its shapes are no device's. Make every axis manual, or read the compiled text."
                )
            yield from found


def _inner(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "jaxpr"):
                yield item.jaxpr
            elif hasattr(item, "eqns"):
                yield item


def _axes(equation) -> tuple[str, ...]:
    axes = equation.params.get("axes", equation.params.get("axis_name"))
    axes = axes if isinstance(axes, tuple | list) else (axes,)
    return tuple(a for a in axes if isinstance(a, str))


def _automatic_axes(equation, mesh_axes: Mapping[str, int]) -> set[str]:
    """Return the mesh axes of several devices that a shard_map leaves to the partitioner."""
    params = equation.params
    manual = params.get("newly_manual_axes", params.get("manual_axes"))
    if manual is None:
        raise HloError("jaxpr: a shard_map that does not say which mesh axes are manual.")
    mesh = params["mesh"]
    around = {n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True)
              if t == AxisType.Manual}  # fmt: skip
    large = {axis for axis, size in mesh_axes.items() if size > 1}
    return (large & set(mesh.axis_names)) - set(manual) - around


def _collective(equation, kind, count, mesh_axes) -> Iterator[Collective]:
    name, named = equation.primitive.name, _axes(equation)
    if unknown := set(named) - set(mesh_axes):
        raise HloError(
            f"jaxpr: '{name}' over {sorted(unknown)}, expected mesh axes of {dict(mesh_axes)}."
        )
    if equation.params.get("axis_index_groups") is not None:
        raise HloError(f"jaxpr: '{name}' with axis_index_groups is not understood.")
    pairs = tuple(equation.params.get("perm") or ())
    axes = tuple(a for a in mesh_axes if a in named)
    if kind == "collective-permute":
        # The positions in pairs run over the axes in the order in which they are named.
        axes = axes_of_pairs(pairs, {a: mesh_axes[a] for a in named})
        axes = tuple(a for a in mesh_axes if a in axes)
    size = math.prod(mesh_axes[a] for a in axes)
    if size == 1:
        return
    # A ragged exchange sends rows of its first operand; the others hold offsets and counts.
    for variable in equation.invars[:1] if kind == RAGGED else equation.invars:
        payload = variable.aval.size * variable.aval.dtype.itemsize
        if kind == "all-gather":
            payload *= size
        yield Collective(
            kind=kind, axes=axes, group_size=size, payload_bytes=payload,
            wire_bytes=wire_bytes(kind, size, payload), count=count,
            dtype=str(variable.aval.dtype), op_name=name, pairs=pairs,
        )  # fmt: skip
