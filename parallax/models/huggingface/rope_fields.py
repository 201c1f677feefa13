"""The settings of rotary embeddings in config.json, in their older and newer spellings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parallax.models.huggingface.fields import Fields
from parallax.models.layer_kinds import RopeKind, RopeScaling

_KINDS = ("default", "linear", "llama3", "yarn")
_DIGITS = 12  # of a setting computed back from what it caused


@dataclass(frozen=True)
class Rope:
    """The settings of one rotary embedding.

    Attributes:
      theta: base of the frequencies.
      scaling: their scaling.
      share: leading share of each head that is rotated.
      score_factor: factor of the scores, which only DeepSeek's models apply.
    """

    theta: float
    scaling: RopeScaling | None = None
    share: float = 1.0
    score_factor: float = 1.0


def read_rope(
    fields: Fields,
    *,
    base: str = "rope_theta",
    scaled: bool = True,
    layer_type: str | None = None,
    kinds: tuple[str, ...] = _KINDS,
) -> Rope:
    """Return the rotary embedding of a model, or of one of its types of layers.

    Args:
      fields: with `rope_theta` and `rope_scaling` (older), or `rope_parameters` with both (newer),
        which may hold such settings for each type of layer.
      base: the older spelling's name of the base.
      scaled: the older spelling's scaling is about this embedding.
      layer_type: the type of layers, for models whose embeddings differ by it.
      kinds: the types of scaling that the family has here.
    """
    older, newer = fields.inner("rope_scaling"), fields.inner("rope_parameters")
    if any(isinstance(value, dict) for value in newer.values.values()):
        if layer_type is None:
            fields.refused("rope_parameters", "one for all layers; this differs between layers")
            newer.values = {}
        else:
            newer = newer.inner(layer_type)
    elif layer_type is not None and newer.values:
        fields.refused("rope_parameters", "one for each type of layers")
    top = {"rope_theta": fields.values.get(base)}
    if (share := fields.values.get("partial_rotary_factor")) is not None:
        top["partial_rotary_factor"] = share
    if scaled and older.values and newer.values and _differ(top | older.values, newer.values):
        fields.refused("rope_scaling", "what rope_parameters says; readers differ in which counts")
    rope = fields.over({})
    rope.values = top | (older.values if scaled else {}) | newer.values
    theta, share = rope.number("rope_theta"), rope.number("partial_rotary_factor", 1.0)
    limit = fields.values.get("max_position_embeddings")
    scaling, score_factor = _scaling(rope, kinds, limit)
    return Rope(theta, scaling, share, score_factor)


def _differ(older: Mapping[str, Any], newer: Mapping[str, Any]) -> bool:
    """Return whether the settings of the older spelling are not those of the newer one."""
    spelled = {("rope_type" if name == "type" else name): x for name, x in older.items()}
    names = {*spelled, *newer} - {"type"}
    return any(spelled.get(name) != newer.get(name) for name in names)


def _scaling(rope: Fields, kinds: tuple[str, ...], limit: Any) -> tuple[RopeScaling | None, float]:
    settings = set(rope.values) - {"rope_theta", "partial_rotary_factor"}
    kind = rope.values.get("rope_type", rope.values.get("type", None if settings else "default"))
    if kind not in kinds:
        rope.values["rope_type"] = kind
        rope.refused("rope_type", f"rope type {' or '.join(kinds)}")
        return None, 1.0
    if kind == "default":
        return None, 1.0
    factor, original = rope.number("factor"), "original_max_position_embeddings"
    if kind == "linear":
        return _of_kind(rope, "linear", factor), 1.0
    if kind == "llama3":
        scaling = _of_kind(
            rope, "llama3", factor, low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_seq_len=rope.integer(original),
        )  # fmt: skip
        return scaling, 1.0
    mscale = rope.number("mscale", 0.0, or_zero=True)
    of_scores = rope.number("mscale_all_dim", 0.0, or_zero=True)
    implied = magnitude(factor)
    if mscale and of_scores:
        implied = magnitude(factor, mscale) / magnitude(factor, of_scores)
    scaling = _of_kind(
        rope, "yarn", factor, original_max_seq_len=rope.integer(original, limit),
        beta_fast=rope.number("beta_fast", 32.0), beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
        attention_factor=rope.number("attention_factor", implied),
    )  # fmt: skip
    return scaling, magnitude(factor, of_scores) ** 2 if of_scores else 1.0


def _of_kind(rope: Fields, kind: RopeKind, factor: float, **settings: Any) -> RopeScaling:
    """Return a scaling; the error for settings that contradict each other names the file."""
    try:
        return RopeScaling(kind, factor, **settings)
    except ValueError as error:
        raise ValueError(f"{rope.path}: {error}") from None


def magnitude(factor: float, mscale: float = 1.0) -> float:
    """Return YaRN's factor of queries and keys for a factor of the sequence length."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_fields(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Return both settings in their older spelling, which all readers know."""
    return {"rope_theta": theta, "rope_scaling": scaling and scaling_fields(scaling)}


def scaling_fields(scaling: RopeScaling, score_factor: float = 1.0) -> dict[str, Any]:
    """Return a scaling as config.json has it.

    Args:
      scaling: the scaling.
      score_factor: the factor of scores that it implies, for DeepSeek's models.
    """
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return fields
    fields["original_max_position_embeddings"] = scaling.original_max_seq_len
    if scaling.kind == "llama3":
        return fields | {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
        }
    fields |= {
        "beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
    }  # fmt: skip
    if score_factor == 1.0 or scaling.factor == 1.0:
        return fields | {"attention_factor": scaling.attention_factor}
    return fields | _magnitudes(scaling, score_factor)


def _magnitudes(scaling: RopeScaling, score_factor: float) -> dict[str, float]:
    """Return the settings from which both the angles' and the scores' factor follow.

    Some readers know the first two alone, and attention_factor has what rounding takes from them.
    """
    of_scores = math.sqrt(score_factor)
    of_angles = scaling.attention_factor * of_scores
    slope = 0.1 * math.log(scaling.factor)
    names = {"mscale": of_angles, "mscale_all_dim": of_scores}
    fields = {name: round((value - 1) / slope, _DIGITS) for name, value in names.items()}
    return fields | {"attention_factor": scaling.attention_factor}
