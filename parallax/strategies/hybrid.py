"""The combination of strategies: the product of meshes, the union of rules, nested parts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from parallax.meshes.mesh import MESH_AXES, MeshSpec
from parallax.parallel.attention_parts import AttentionPart, Local
from parallax.parallel.experts import LocalExperts
from parallax.parallel.layer_parts import Scan
from parallax.parallel.sharded_weights import Gather
from parallax.rules import LOGICAL_AXES, Axes, Phase, Rules
from parallax.strategy import Strategy


def hybrid(*strategies: Strategy, name: str | None = None) -> Strategy:
    """Combine several strategies, for example `hybrid(layerwise(2), ring_sequence(8))`.

    Args:
      strategies: strategies over different mesh axes. If parts nest (`HeadSlices`, `Ulysses`), the
        first strategy's is the outermost.
      name: name of the result; None joins the names with "+".

    Raises:
      ValueError: a mesh axis that two of them use, or parts that exclude each other: two rings, two
        pipelines, two ways to reach experts.
    """
    name = name or "+".join(s.name for s in strategies)
    context = f"hybrid '{name}'"
    sizes: dict[str, int] = {}
    for strategy in strategies:
        for axis, size in strategy.mesh.axes:
            if axis in sizes:
                raise ValueError(
                    f"{context}: mesh axis '{axis}' is used twice. Combine strategies over "
                    "different mesh axes."
                )
            sizes[axis] = size
    attention = _nested([s.attention for s in strategies], context)
    rules = _united([s.rules for s in strategies], attention.seq_axes)
    gathers: set[Gather] = {s.gather for s in strategies if s.shards_weights} or {"layer"}
    if len(gathers) > 1:
        raise ValueError(f"{context}: gather is {' and '.join(sorted(gathers))}. Use one.")
    wires = {s.reduce_dtype for s in strategies if s.reduce_dtype is not None}
    if len(wires) > 1:
        raise ValueError(f"{context}: reduce_dtype is {' and '.join(sorted(wires))}. Use one.")
    return Strategy(
        name,
        MeshSpec({axis: sizes[axis] for axis in (*MESH_AXES, *sizes) if axis in sizes}),
        rules,
        attention=attention,
        experts=_only([s.experts for s in strategies], LocalExperts(), "experts", context),
        layers=_only([s.layers for s in strategies], Scan(), "layers", context),
        reduce_dtype=next(iter(wires), None),
        gather=next(iter(gathers)),
    )


def _united(rules: list[Rules], seq_axes: tuple[str, ...]) -> Rules:
    def union(name: str, phase: Phase) -> tuple[str, ...] | None:
        return tuple(axis for r in rules for axis in r.table(phase)[name]) or None

    prefill = {name: union(name, "prefill") for name in LOGICAL_AXES}
    prefill["act_seq"] = seq_axes or None
    decode = {name: union(name, "decode") for name in LOGICAL_AXES}
    changed = {n: axes for n, axes in decode.items() if set(axes or ()) != set(prefill[n] or ())}
    held = prefill["embed"] or ()
    further = [a for r in rules for a in r.table("optimizer")["embed"] if a not in held]
    optimizer = {"embed": (*held, *further)} if further else {}
    extra = tuple(pair for r in rules for pair in _pairs(r.extra))
    known: dict[str, Any] = dict(prefill)
    return Rules(**known, decode=changed, optimizer=optimizer, extra=extra)


def _pairs(named: Mapping[str, Axes] | tuple[tuple[str, Axes], ...]):
    return named.items() if isinstance(named, Mapping) else named


def _nested(parts: list[Any], context: str) -> AttentionPart:
    wrapping = [p for p in parts if hasattr(p, "inner")]
    inner = _only([p for p in parts if p not in wrapping], Local(), "attention", context)
    for part in reversed(wrapping):
        if part.inner != Local():
            raise ValueError(
                f"{context}: {part} already has an inner part. Give it without one, or give the "
                "nested part as a single strategy's."
            )
        inner = dataclasses.replace(part, inner=inner)
    return inner


def _only(parts: list[Any], nothing: Any, what: str, context: str) -> Any:
    chosen = [p for p in parts if p != nothing]
    if len(chosen) > 1:
        raise ValueError(f"{context}: {what} cannot be {chosen[0]} and {chosen[1]} at once.")
    return chosen[0] if chosen else nothing
