"""gpt-oss: sinks, alternating windows, experts with biases and clamped gates."""

from typing import Any

from parallax.models.config import ModelConfig
from parallax.models.huggingface import names
from parallax.models.huggingface.families.family import Family
from parallax.models.huggingface.families.llama import NO_EXPERTS_OF_ONE, expert_settings
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
from parallax.models.huggingface.tensors import Layout
from parallax.models.layer_kinds import LayerKind, Router

_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def _read(fields: Fields) -> ModelConfig:
    fields.refuse("attention_bias", lambda x: x is True, "true: experts have biases too")
    fields.refuse("swiglu_alpha", lambda x: x == 1.702, "1.702")
    fields.refuse("num_experts_per_tok", lambda x: x != 1, NO_EXPERTS_OF_ONE)
    window = window_of(fields)
    types = layer_types(fields, lambda layer: FULL if layer % 2 else SLIDING)
    kinds = [LayerKind(window if kind == SLIDING else None) for kind in types]
    if not fields.values.get("rope_parameters") and not fields.values.get("rope_scaling"):
        fields.values["rope_scaling"] = _YARN
    return decoder(
        fields, "gpt_oss", read_rope(fields),
        has=("attention_bias", "sliding_window", "layer_types", "num_local_experts"),
        pattern=pattern_of(fields, "layer_types", kinds), bias=True, sinks=True, gate="clamped",
        gate_limit=fields.number("swiglu_limit"), router=Router(bias="logits"),
        **expert_settings(fields, "num_local_experts"),
    )  # fmt: skip


def _write(config: ModelConfig) -> dict[str, Any] | None:
    if config.num_experts < 2:
        return None
    fields = decoder_fields(config)
    if config.rope_scaling is None:  # an absent scaling would be the family's own
        del fields["rope_scaling"]
        theta = fields.pop("rope_theta")
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    return fields | window_fields(config) | {
        "attention_bias": True,
        "swiglu_limit": config.gate_limit,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "router_aux_loss_coef": config.load_balance,
    }  # fmt: skip


_TURNS = ("", "")
_LAYER: names.Table = {
    **names.ATTENTION, **names.QKV_BIAS, **names.OUT_BIAS, **names.NORMS_BEFORE,
    "self_attn.sinks": (("attention", "sinks_H"), Layout("h", ("h",))),
    "mlp.router.weight": (("mlp", "router_DE"), Layout("de", ("e", "d"))),
    "mlp.router.bias": (("mlp", "router_bias_E"), Layout("e", ("e",))),
    "mlp.experts.down_proj": (("mlp", "down_EFD"), Layout("efd", ("e", "f", "d"))),
    "mlp.experts.down_proj_bias": (("mlp", "down_bias_ED"), Layout("ed", ("e", "d"))),
} | {
    f"mlp.experts.gate_up_proj{name}#{what}": (
        ("mlp", f"{what}{leaf}"), Layout(ours, (*theirs, "f*"), parts=_TURNS, part=part),
    )
    for part, what in enumerate(("gate", "up"))
    for name, leaf, ours, theirs in (
        ("", "_EDF", "edf", ("e", "d")), ("_bias", "_bias_EF", "ef", ("e",)),
    )
}  # fmt: skip

GPT_OSS = Family(
    "gpt_oss", "GptOssForCausalLM", "gpt-oss-20b and gpt-oss-120b",
    "sinks, windows, biases, experts with clamped gates",
    _read, _write, lambda config: names.decoder_pieces(config, lambda config, dense: _LAYER),
    {
        "vocab_size": 201_088, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "rope_theta": 150_000.0, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128,
        "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_limit": 7.0,
        "attention_bias": True,
    },
    quantized=("mxfp4",),
)  # fmt: skip
