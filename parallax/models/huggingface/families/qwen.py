"""Qwen2 (and 2.5), Qwen3 and Qwen3's mixtures of experts."""

from typing import Any

from parallax.models.config import ModelConfig
from parallax.models.huggingface import names
from parallax.models.huggingface.families.family import Family
from parallax.models.huggingface.families.llama import (
    NO_EXPERTS_OF_ONE,
    expert_settings,
    llama_layer,
    one_window,
    windowed,
)
from parallax.models.huggingface.fields import Fields
from parallax.models.huggingface.rope_fields import read_rope
from parallax.models.huggingface.settings import (
    FULL,
    SLIDING,
    decoder,
    decoder_fields,
    layer_types,
    pattern_of,
    window_fields,
    window_of,
)
from parallax.models.layer_kinds import LayerKind, Router


def _pattern(fields: Fields) -> tuple[LayerKind, ...]:
    """Return the pattern of windows, which layers from max_window_layers on have."""
    window = window_of(fields, enabled=False)
    first = fields.number("max_window_layers", or_zero=True) if window is not None else 0
    types = layer_types(fields, lambda i: SLIDING if window is not None and i >= first else FULL)
    name = "layer_types" if fields.values.get("layer_types") else "max_window_layers"
    kinds = [LayerKind(window if kind == SLIDING else None) for kind in types]
    return pattern_of(fields, name, kinds)


def _windows(config: ModelConfig) -> dict[str, Any]:
    fields = window_fields(config)
    return fields | {"use_sliding_window": fields["sliding_window"] is not None}


def _read_qwen2(fields: Fields) -> ModelConfig:
    # Its queries, keys and values have biases whatever attention_bias says, its output has none.
    has = ("sliding_window", "layer_types", "attention_bias")
    return decoder(
        fields, "qwen2", read_rope(fields), has=has, pattern=_pattern(fields), qkv_bias=True
    )


def _write_qwen2(config: ModelConfig) -> dict[str, Any]:
    fields = decoder_fields(config) | _windows(config)
    del fields["attention_bias"]
    return fields


def _qwen2_layer(config: ModelConfig, dense: bool) -> names.Table:
    return {**llama_layer(config, dense), **names.QKV_BIAS}


_DEFAULTS = {
    "vocab_size": 151_936, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0, "max_window_layers": 28, "sliding_window": 4096,
}  # fmt: skip

QWEN2 = Family(
    "qwen2", "Qwen2ForCausalLM", "Qwen2 and Qwen2.5", "biases of queries, keys and values; window",
    _read_qwen2, _write_qwen2, lambda config: names.decoder_pieces(config, _qwen2_layer),
    {**_DEFAULTS, "num_key_value_heads": 32},
)  # fmt: skip


def _read_qwen3(fields: Fields) -> ModelConfig:
    return decoder(
        fields, "qwen3", read_rope(fields), has=("sliding_window", "layer_types"),
        pattern=_pattern(fields), qk_norm=True,
    )  # fmt: skip


def _write_qwen3(config: ModelConfig) -> dict[str, Any]:
    return decoder_fields(config) | _windows(config)


def _qwen3_layer(config: ModelConfig, dense: bool) -> names.Table:
    return {**llama_layer(config, dense), **names.QK_NORM}


QWEN3 = Family(
    "qwen3", "Qwen3ForCausalLM", "Qwen3 0.6B to 32B", "norm of each query and key head; window",
    _read_qwen3, _write_qwen3, lambda config: names.decoder_pieces(config, _qwen3_layer),
    {**_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128},
)  # fmt: skip


def _read_qwen3_moe(fields: Fields) -> ModelConfig:
    fields.refuse("decoder_sparse_step", lambda x: x == 1, "1: experts in every layer")
    fields.refuse("mlp_only_layers", lambda x: not x, "none: experts in every layer")
    normalize = fields.flag("norm_topk_prob", False)
    if normalize:
        fields.refuse("num_experts_per_tok", lambda x: x != 1, NO_EXPERTS_OF_ONE)
    count = "num_experts" if "num_experts" in fields.values else "num_local_experts"
    return decoder(
        fields, "qwen3_moe", read_rope(fields),
        has=("sliding_window", "num_experts", "num_local_experts"),
        pattern=windowed(fields, enabled=False), qk_norm=True,
        d_ff=fields.integer("moe_intermediate_size"),
        router=None if normalize else Router(normalize=False),
        **expert_settings(fields.over({"num_local_experts": 128}), count),
    )  # fmt: skip


def _write_qwen3_moe(config: ModelConfig) -> dict[str, Any] | None:
    if config.num_experts < 2:
        return None
    return decoder_fields(config) | one_window(config) | {
        "use_sliding_window": bool(config.pattern),
        "moe_intermediate_size": config.d_ff,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": config.router is None or config.router.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": config.load_balance,
    }  # fmt: skip


def _qwen3_moe_layer(config: ModelConfig, dense: bool) -> names.Table:
    experts = names.experts("mlp", "gate_proj", "up_proj", "down_proj")
    return {**names.ATTENTION, **names.QK_NORM, **names.NORMS_BEFORE, **experts}


QWEN3_MOE = Family(
    "qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3 30B-A3B and 235B-A22B",
    "experts, norm of each query and key head, window",
    _read_qwen3_moe, _write_qwen3_moe,
    lambda config: names.decoder_pieces(config, _qwen3_moe_layer),
    {
        **_DEFAULTS, "num_key_value_heads": 4, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_experts_per_tok": 8,
    },
)  # fmt: skip
