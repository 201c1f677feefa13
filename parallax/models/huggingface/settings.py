"""The settings that most families share, from config.json to ModelConfig and back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parallax.models.config import ModelConfig
from parallax.models.huggingface.fields import Fields
from parallax.models.huggingface.rope_fields import Rope, rope_fields
from parallax.models.layer_kinds import LayerKind

FULL, SLIDING = "full_attention", "sliding_attention"
MOST_KINDS = 8  # of a pattern of layers: each kind is compiled
# The names of one function: x * sigmoid(x), and GELU by tanh.
SILU, GELU = ("silu", "swish"), ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")


def _none(value: Any) -> bool:
    return value is None


def _all_full(types: Any) -> bool:
    return types is None or (isinstance(types, list) and all(kind == FULL for kind in types))


# Setting -> (whether a value leaves it out, what Parallax does instead). A family that has one of
# them names it in `decoder`.
_PLAIN: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "hidden_act": (lambda x: x in SILU, "silu"),
    "attention_bias": (lambda x: not x, "no bias"),
    "mlp_bias": (lambda x: not x, "no bias"),
    "layer_types": (_all_full, "full attention"),
    "attn_logit_softcapping": (_none, "none"),
    "final_logit_softcapping": (_none, "none"),
    "clip_qkv": (_none, "none"),
    "rope_interleaved": (lambda x: not x, "halves of a head turn"),
    "partial_rotary_factor": (lambda x: x in (None, 1), "whole heads turn"),
    "no_rope_layers": (lambda x: not isinstance(x, list) or all(x), "every layer rotates"),
    "use_bidirectional_attention": (lambda x: not x, "causal attention"),
    "num_local_experts": (lambda x: not x, "no experts"),
    "num_experts": (lambda x: not x, "no experts"),
    "n_routed_experts": (lambda x: not x, "no experts"),
}


def decoder(
    fields: Fields, family: str, rope: Rope, *, has: Sequence[str] = (), **own: Any
) -> ModelConfig:
    """Return a decoder of gated MLPs, RMSNorm and rotated heads.

    Args:
      fields: the settings, with the family's defaults.
      family: the config's name.
      rope: as `read_rope` returned it.
      has: settings that the family reads itself; of all others that compute something else, those
        that are set are refused.
      own: fields of ModelConfig in which the family differs.
    """
    for name, (is_ours, words) in _PLAIN.items():
        if name not in has:
            fields.refuse(name, is_ours, words)
    if "partial_rotary_factor" not in has and rope.share != 1:
        fields.inner("rope_parameters").refuse(
            "partial_rotary_factor", *_PLAIN["partial_rotary_factor"]
        )
        fields.inner("rope_scaling").refuse(
            "partial_rotary_factor", *_PLAIN["partial_rotary_factor"]
        )
    if "sliding_window" not in has and window_of(fields, enabled=True) is not None:
        fields.refused("sliding_window", "full attention")
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    sizes: dict[str, Any] = {
        "num_kv_heads": fields.integer("num_key_value_heads", heads),
        "head_dim": fields.integer("head_dim", max(1, width // heads)),
        "d_ff": fields.integer("intermediate_size"),
    } | own
    return ModelConfig(
        name=family,
        num_layers=fields.integer("num_hidden_layers"),
        d_model=width,
        num_heads=heads,
        vocab_size=fields.integer("vocab_size"),
        mlp="gated",
        max_seq_len=fields.integer("max_position_embeddings"),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        norm_epsilon=fields.number("rms_norm_eps"),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        **sizes,
    )


def decoder_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the settings that `decoder` reads."""
    return {
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
    } | rope_fields(config.rope_theta, config.rope_scaling)


def window_of(fields: Fields, *, enabled: bool | None = None) -> int | None:
    """Return the tokens of a window; None if there is none, or if it hides no token.

    Args:
      fields: with `sliding_window` and `max_position_embeddings`.
      enabled: the family's default of `use_sliding_window`; None in families that do not have it.
    """
    if enabled is not None and not fields.flag("use_sliding_window", enabled):
        return None
    if not fields.values.get("sliding_window"):
        return None
    window = fields.integer("sliding_window")
    return None if window >= fields.integer("max_position_embeddings") else window


def layer_types(fields: Fields, default: Callable[[int], str]) -> list[str]:
    """Return the type of each layer, FULL or SLIDING.

    Args:
      fields: with `num_hidden_layers`, and `layer_types` if they are named one by one.
      default: the type of layer i without these names.
    """
    count, types = fields.integer("num_hidden_layers"), fields.values.get("layer_types")
    if types is None:
        return [default(layer) for layer in range(count)]
    if not isinstance(types, list) or any(kind not in (FULL, SLIDING) for kind in types):
        fields.refused("layer_types", f"{FULL} or {SLIDING} of each layer")
        return [FULL] * count
    if len(types) != count:
        raise ValueError(
            f"{fields.path}: layer_types names {len(types)} layers, num_hidden_layers is {count}."
        )
    return types


def pattern_of(fields: Fields, name: str, kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """Return the shortest pattern that repeats to all layers' kinds; refuse `name` if it is long.

    Args:
      fields: the settings.
      name: the setting that the kinds come from.
      kinds: the kind of each layer.
    """
    period = next(
        p for p in range(1, len(kinds) + 1)
        if all(kind == kinds[i % p] for i, kind in enumerate(kinds))
    )  # fmt: skip
    if period > MOST_KINDS:
        fields.refused(name, f"kinds of layers that repeat after {MOST_KINDS} or fewer")
        return ()
    pattern = tuple(kinds[:period])
    return () if pattern == (LayerKind(),) else pattern


def kinds_by_layer(config: ModelConfig) -> list[LayerKind]:
    """Return the kind of each layer."""
    return [config.kinds[i % len(config.kinds)] for i in range(config.num_layers)]


def window_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the settings of windows: one width, and the type of each layer."""
    kinds = kinds_by_layer(config)
    widths = {kind.window for kind in kinds if kind.window is not None}
    return {
        "sliding_window": max(widths, default=None),
        "layer_types": [FULL if kind.window is None else SLIDING for kind in kinds],
    }
