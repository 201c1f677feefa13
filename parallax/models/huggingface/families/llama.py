"""Llama, and families whose layers have its parts: Mistral, Mixtral, OLMo-2 and SmolLM3."""

from collections.abc import Mapping
from typing import Any

from parallax.models.config import ModelConfig
from parallax.models.huggingface import names
from parallax.models.huggingface.families.family import Family
from parallax.models.huggingface.fields import Fields
from parallax.models.huggingface.rope_fields import read_rope
from parallax.models.huggingface.settings import (
    FULL,
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

NO_EXPERTS_OF_ONE = "one choice is weighted by its probability"


def windowed(fields: Fields, *, enabled: bool | None = None) -> tuple[LayerKind, ...]:
    """Return the pattern of a model all of whose layers have one window, or none."""
    window = window_of(fields, enabled=enabled)
    return () if window is None else (LayerKind(window),)


def one_window(config: ModelConfig) -> dict[str, Any]:
    """Return the setting of a window that all layers have."""
    return {"sliding_window": window_fields(config)["sliding_window"]}


def _read_llama(fields: Fields) -> ModelConfig:
    return decoder(fields, "llama", read_rope(fields))


def _write_llama(config: ModelConfig) -> dict[str, Any]:
    return decoder_fields(config)


def llama_layer(config: ModelConfig, dense: bool) -> names.Table:
    """Return the tensors of one of Llama's layers."""
    return {**names.ATTENTION, **names.NORMS_BEFORE, **names.mlp()}


LLAMA = Family(
    "llama", "LlamaForCausalLM", "Llama 2 and 3, SmolLM2", "", _read_llama, _write_llama,
    lambda config: names.decoder_pieces(config, llama_layer),
    {
        "vocab_size": 32_000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
    },
)  # fmt: skip


def _read_mistral(fields: Fields) -> ModelConfig:
    pattern = windowed(fields)
    return decoder(fields, "mistral", read_rope(fields), has=("sliding_window",), pattern=pattern)


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
    return decoder_fields(config) | one_window(config)


MISTRAL = Family(
    "mistral", "MistralForCausalLM", "Mistral 7B, Mistral Small", "window",
    _read_mistral, _write_mistral, lambda config: names.decoder_pieces(config, llama_layer),
    {
        "vocab_size": 32_000, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0, "num_key_value_heads": 8, "sliding_window": 4096,
    },
)  # fmt: skip


def _read_mixtral(fields: Fields) -> ModelConfig:
    fields.refuse("num_experts_per_tok", lambda x: x != 1, NO_EXPERTS_OF_ONE)
    return decoder(
        fields, "mixtral", read_rope(fields), has=("sliding_window", "num_local_experts"),
        pattern=windowed(fields), **expert_settings(fields, "num_local_experts"),
    )  # fmt: skip


def expert_settings(fields: Fields, count: str) -> Mapping[str, Any]:
    """Return the fields of ModelConfig about experts, whose number the setting `count` has."""
    return {
        "num_experts": fields.integer(count),
        "experts_per_token": fields.integer("num_experts_per_tok"),
        "load_balance": fields.number("router_aux_loss_coef", 0.001, or_zero=True),
    }


def _write_mixtral(config: ModelConfig) -> dict[str, Any] | None:
    if config.num_experts < 2:
        return None
    return decoder_fields(config) | one_window(config) | {
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "router_aux_loss_coef": config.load_balance,
    }  # fmt: skip


def _mixtral_layer(config: ModelConfig, dense: bool) -> names.Table:
    experts = names.experts("block_sparse_moe", "w1", "w3", "w2")
    return {**names.ATTENTION, **names.NORMS_BEFORE, **experts}


MIXTRAL = Family(
    "mixtral", "MixtralForCausalLM", "Mixtral 8x7B and 8x22B", "experts, window",
    _read_mixtral, _write_mixtral, lambda config: names.decoder_pieces(config, _mixtral_layer),
    {
        "vocab_size": 32_000, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
)  # fmt: skip


def _read_olmo2(fields: Fields) -> ModelConfig:
    return decoder(
        fields, "olmo2", read_rope(fields), norms="after", qk_norm=True, qk_norm_width="all"
    )


def _olmo2_layer(config: ModelConfig, dense: bool) -> names.Table:
    return {**names.ATTENTION, **names.QK_NORM_ALL, **names.NORMS_AFTER, **names.mlp()}


OLMO2 = Family(
    "olmo2", "Olmo2ForCausalLM", "OLMo 2 7B, 13B and 32B", "norms after, norm of all query heads",
    _read_olmo2, _write_llama, lambda config: names.decoder_pieces(config, _olmo2_layer),
    {
        "vocab_size": 50_304, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
    },
)  # fmt: skip


def _read_smollm3(fields: Fields) -> ModelConfig:
    count = fields.integer("num_hidden_layers")
    rotates = fields.whole_numbers("no_rope_layers")
    if rotates is None:
        interval = fields.integer("no_rope_layer_interval")
        rotates = [(layer + 1) % interval for layer in range(count)]
    if len(rotates) != count:
        raise ValueError(
            f"{fields.path}: no_rope_layers names {len(rotates)} layers, num_hidden_layers is "
            f"{count}."
        )
    window = window_of(fields, enabled=False)
    types = layer_types(
        fields, lambda i: SLIDING if window is not None and not rotates[i] else FULL
    )
    kinds = [
        LayerKind(window if kind == SLIDING else None, bool(turns))
        for kind, turns in zip(types, rotates, strict=True)
    ]
    return decoder(
        fields, "smollm3", read_rope(fields),
        has=("sliding_window", "layer_types", "no_rope_layers"),
        pattern=pattern_of(fields, "no_rope_layers", kinds),
    )  # fmt: skip


def _write_smollm3(config: ModelConfig) -> dict[str, Any]:
    fields = decoder_fields(config) | window_fields(config)
    return fields | {
        "no_rope_layers": [int(kind.rotates) for kind in kinds_by_layer(config)],
        "use_sliding_window": fields["sliding_window"] is not None,
        "pad_token_id": None,  # without it, transformers takes one that small vocabularies lack
    }


SMOLLM3 = Family(
    "smollm3", "SmolLM3ForCausalLM", "SmolLM3 3B", "layers without positions, window",
    _read_smollm3, _write_smollm3, lambda config: names.decoder_pieces(config, llama_layer),
    {
        "vocab_size": 128_256, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
        "rope_theta": 2_000_000.0, "num_key_value_heads": 4, "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    },
)  # fmt: skip
