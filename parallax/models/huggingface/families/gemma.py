"""Gemma 2 and the text model of Gemma 3."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from parallax.models.config import ModelConfig
from parallax.models.huggingface import names
from parallax.models.huggingface.families.family import Family
from parallax.models.huggingface.fields import Fields
from parallax.models.huggingface.rope_fields import Rope, read_rope, scaling_fields
from parallax.models.huggingface.settings import (
    FULL,
    GELU,
    SLIDING,
    decoder,
    decoder_fields,
    kinds_by_layer,
    layer_types,
    pattern_of,
    window_fields,
    window_of,
)
from parallax.models.layer_kinds import LayerKind

_HAS = "hidden_act", "sliding_window", "layer_types"
_CAPS = {"attn_logit_softcapping": "score_cap", "final_logit_softcapping": "logit_cap"}


def _gemma(
    fields: Fields, family: str, rope: Rope, has: Sequence[str], **own: Any
) -> ModelConfig:  # fmt: skip
    """Return what both have in common; `has` are the caps of the family, of `_CAPS`."""
    fields.refuse("hidden_activation", lambda x: x is None or x in GELU, "gelu_pytorch_tanh")
    width, scale = fields.integer("hidden_size"), fields.number("query_pre_attn_scalar")
    caps = {_CAPS[name]: fields.number(name) for name in has if fields.values.get(name) is not None}
    config = decoder(
        fields, family, rope, has=(*_HAS, *has), gate="gelu", norms="both", norm_offset=True,
        embed_scale=math.sqrt(width), **caps, **own,
    )  # fmt: skip
    return config.replace(score_scale=None if scale == config.head_dim else scale**-0.5)


def _types(fields: Fields, period: int) -> tuple[list[str], int | None]:
    """Return each layer's type, and the window of those that have one."""
    types = layer_types(fields, lambda layer: SLIDING if (layer + 1) % period else FULL)
    return types, window_of(fields)


def _gemma_fields(config: ModelConfig) -> dict[str, Any]:
    scale = config.head_dim if config.score_scale is None else round(config.score_scale**-2, 9)
    fields = decoder_fields(config) | window_fields(config)
    del fields["hidden_act"]
    return fields | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": int(scale) if scale == int(scale) else scale,
        "attn_logit_softcapping": config.score_cap,
        "final_logit_softcapping": config.logit_cap,
    }


def _read_gemma2(fields: Fields) -> ModelConfig:
    types, window = _types(fields, 2)
    kinds = [LayerKind(window if kind == SLIDING else None) for kind in types]
    pattern = pattern_of(fields, "layer_types", kinds)
    return _gemma(fields, "gemma2", read_rope(fields), tuple(_CAPS), pattern=pattern)


def _gemma2_layer(config: ModelConfig, dense: bool) -> names.Table:
    return {**names.ATTENTION, **names.NORMS_BOTH, **names.mlp()}


GEMMA2 = Family(
    "gemma2", "Gemma2ForCausalLM", "Gemma 2 2B, 9B and 27B",
    "windows, norms before and after, capped scores and logits",
    _read_gemma2, _gemma_fields, lambda config: names.decoder_pieces(config, _gemma2_layer),
    {
        "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "rope_theta": 10_000.0, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    },
)  # fmt: skip


def _read_gemma3_text(
    fields: Fields, has: Sequence[str] = ("final_logit_softcapping",)
) -> ModelConfig:
    # Its class of transformers has attn_logit_softcapping too, and caps no scores.
    types, window = _types(fields, fields.integer("sliding_window_pattern"))
    rope = read_rope(fields, layer_type=FULL)
    local = read_rope(fields, base="rope_local_base_freq", scaled=False, layer_type=SLIDING)
    same = (local.theta, local.scaling) == (rope.theta, rope.scaling)
    near = LayerKind(window) if same else LayerKind(window, True, local.theta, local.scaling)
    kinds = [near if kind == SLIDING else LayerKind() for kind in types]
    pattern = pattern_of(fields, "layer_types", kinds)
    return _gemma(fields, "gemma3_text", rope, has, pattern=pattern, qk_norm=True)


def _write_gemma3_text(config: ModelConfig) -> dict[str, Any]:
    fields = _gemma_fields(config)
    near = next((k for k in kinds_by_layer(config) if k.rope_theta is not None), LayerKind())
    theta, scaling = near.rope_theta or config.rope_theta, near.rope_scaling
    if near.rope_theta is not None:
        # Windows that hide no token, but have rotations of their own.
        fields["layer_types"] = [
            FULL if kind.rope_theta is None else SLIDING for kind in kinds_by_layer(config)
        ]
        fields["sliding_window"] = fields["sliding_window"] or config.max_seq_len
    else:
        scaling = config.rope_scaling
    if scaling is None:
        return fields | {"rope_local_base_freq": theta}
    del fields["rope_theta"], fields["rope_scaling"]
    whole = config.rope_scaling
    both = {FULL: (config.rope_theta, whole), SLIDING: (theta, scaling)}
    return fields | {"rope_parameters": {
        kind: {"rope_theta": base} | (scaling_fields(of) if of else {"rope_type": "default"})
        for kind, (base, of) in both.items()
    }}  # fmt: skip


def _beside(config: ModelConfig) -> tuple[str, ...]:
    """Return what Gemma 3's folders hold for images."""
    parts = ("vision_tower", "multi_modal_projector")
    return tuple(f"{prefix}{part}." for prefix in ("", "model.") for part in parts)


def _gemma3_layer(config: ModelConfig, dense: bool) -> names.Table:
    return {**_gemma2_layer(config, dense), **names.QK_NORM}


_GEMMA3_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "sliding_window_pattern": 6,
}  # fmt: skip
_GEMMA3_HAS = "windows with rotations of their own, norms before and after, norm of each head"

GEMMA3_TEXT = Family(
    "gemma3_text", "Gemma3ForCausalLM", "Gemma 3 270M and 1B", _GEMMA3_HAS,
    _read_gemma3_text, _write_gemma3_text,
    lambda config: names.decoder_pieces(config, _gemma3_layer), _GEMMA3_DEFAULTS, _beside,
)  # fmt: skip


def _read_gemma3(fields: Fields) -> ModelConfig:
    text = fields.inner("text_config")
    return _read_gemma3_text(text.over(_GEMMA3_DEFAULTS), has=())  # this one caps no logits


GEMMA3 = Family(
    "gemma3", "Gemma3ForConditionalGeneration", "Gemma 3 4B, 12B and 27B, for text alone",
    _GEMMA3_HAS, _read_gemma3, lambda config: None,
    lambda config: names.decoder_pieces(config, _gemma3_layer), ignored=_beside,
)  # fmt: skip
