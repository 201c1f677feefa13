"""The parts of a strategy in words, from its plain data."""

from collections.abc import Mapping
from typing import Any

_SCHEDULES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "1f1b-lockstep": "lockstep 1F1B",
    "zb-h1": "zero-bubble",
}


def describe_parts(strategy: Mapping[str, Any], mesh: str) -> str:
    """Return how attention, layers and experts cross devices, in one line.

    Args:
      strategy: what `Strategy.to_dict` returned.
      mesh: the mesh as a flag names it.
    """
    said = [f"mesh {mesh}", _attention(strategy["attention"]), _layers(strategy["layers"])]
    experts = strategy.get("experts") or {}
    if experts.get("part", "local") != "local":
        said.append(f"experts over {_axes(experts)}, tokens sent by all-to-all")
    return "; ".join(said)


def _attention(part: Mapping[str, Any]) -> str:
    kind = part["part"]
    if kind == "local":
        return "attention without communication"
    if kind == "ring":
        order = f", {part['order']} order" if part.get("order", "natural") != "natural" else ""
        return f"ring attention over {_axes(part)}{order}"
    if kind == "ulysses":
        inner = part.get("inner") or {}
        then = f", then {_attention(inner)}" if inner.get("part", "local") != "local" else ""
        return f"attention after all-to-alls over {_axes(part)}{then}"
    if kind == "head_slices":
        return f"attention in slices of every head over {_axes(part)}"
    return f"{kind.replace('_', ' ')} attention"


def _layers(part: Mapping[str, Any]) -> str:
    kind = part["part"]
    if kind == "scan":
        return "all layers on every device"
    if kind == "pipeline":
        chunks = part.get("virtual_stages", 1)
        each = f", {chunks} chunks per stage" if chunks > 1 else ""
        name = part.get("schedule", "gpipe")
        return f"pipeline over {_axes(part)}, {_SCHEDULES.get(name, name)} schedule{each}"
    if kind == "cache_tiled":
        tiles = f"attention in {part['attention']}, MLP in {part['mlp']} weight tiles"
        return f"{_layers(part['inner'])}; {tiles}"
    return f"{kind.replace('_', ' ')} layers"


def _axes(part: Mapping[str, Any]) -> str:
    axis = part.get("axis", ())
    return axis if isinstance(axis, str) else " x ".join(axis)
