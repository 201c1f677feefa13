"""The second witness: collectives counted in the jaxpr, where mesh axes still have their names."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend import core

from parallax.bounds import wire_bytes
from parallax.hlo.ledger import Collective, Ledger
from parallax.hlo.shapes import HloError

_KINDS = {
    "psum": "all-reduce", "psum_invariant": "all-reduce", "pmax": "all-reduce",
    "pmin": "all-reduce", "all_gather": "all-gather", "all_gather_invariant": "all-gather",
    "all_gather_reduced": "all-gather", "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all", "ppermute": "collective-permute",
}  # fmt: skip
# Primitives that name mesh axes and move nothing.
_LOCAL = {"axis_index", "pcast", "pvary", "reduced_vary_cast", "vary_unreduced_cast"}


def jaxpr_ledger(closed_jaxpr: core.ClosedJaxpr, mesh_axes: Mapping[str, int]) -> Ledger:
    """Collectives of a traced program under one shard_map, loops multiplied out.

    Args:
      closed_jaxpr: `jax.make_jaxpr(f)(...)` or `jax.jit(f).trace(...).jaxpr`.
      mesh_axes: mesh axis -> size, in mesh order.

    Raises:
      HloError: a collective in a branch or in a loop of unknown length, or an unknown one.
    """
    return Ledger(tuple(_walk(closed_jaxpr.jaxpr, 1, mesh_axes)))


def _walk(jaxpr: Any, count: int, mesh_axes: Mapping[str, int]) -> Iterator[Collective]:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _KINDS:
            yield from _collective(equation, _KINDS[name], count, mesh_axes)
            continue
        if ("axes" in equation.params or "axis_name" in equation.params) and _names_mesh_axis(
            equation, mesh_axes
        ):
            if name not in _LOCAL:
                raise HloError(f"jaxpr: primitive '{name}' over a mesh axis is not understood.")
            continue
        times = count
        if name == "scan":
            times = count * equation.params["length"]
        for inner in _inner(equation.params):
            found = list(_walk(inner, times, mesh_axes))
            if found and name in ("cond", "while"):
                raise HloError(f"jaxpr: {found[0].kind} inside '{name}': how often it runs is open.")
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


def _names_mesh_axis(equation, mesh_axes) -> bool:
    return any(axis in mesh_axes for axis in _axes(equation))


def _collective(equation, kind, count, mesh_axes) -> Iterator[Collective]:
    named = _axes(equation)
    axes = tuple(a for a in mesh_axes if a in named)
    size = math.prod(mesh_axes[a] for a in axes)
    if size == 1:
        return
    pairs = tuple(equation.params.get("perm") or ())
    for variable in equation.invars:
        payload = variable.aval.size * variable.aval.dtype.itemsize
        if kind == "all-gather":
            payload *= size
        yield Collective(
            kind=kind, axes=axes, group_size=size, payload_bytes=payload,
            wire_bytes=wire_bytes(kind, size, payload), count=count,
            dtype=str(variable.aval.dtype), op_name=equation.primitive.name, pairs=pairs,
        )  # fmt: skip
