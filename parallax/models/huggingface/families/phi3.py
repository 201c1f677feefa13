"""Phi-3 and Phi-4: Llama's layers with fused matrices, and heads that rotate in part."""

from typing import Any

from parallax.models.config import ModelConfig
from parallax.models.huggingface import names
from parallax.models.huggingface.families.family import Family
from parallax.models.huggingface.families.llama import one_window, windowed
from parallax.models.huggingface.fields import Fields
from parallax.models.huggingface.rope_fields import read_rope
from parallax.models.huggingface.settings import decoder, decoder_fields
from parallax.models.huggingface.tensors import Layout


def _read(fields: Fields) -> ModelConfig:
    # Its class takes "yarn" for LongRoPE, whose factors of each pair are not supported.
    rope = read_rope(fields, kinds=("default",))
    config = decoder(
        fields, "phi3", rope, has=("sliding_window", "partial_rotary_factor"),
        pattern=windowed(fields),
    )  # fmt: skip
    rotated = int(config.head_dim * rope.share)
    if not 2 <= rotated <= config.head_dim:
        raise ValueError(
            f"{fields.path}: partial_rotary_factor {rope.share} leaves {rotated} of a head's "
            f"{config.head_dim} elements to be rotated, expected 2 or more of them."
        )
    return config if rotated == config.head_dim else config.replace(rotary_dim=rotated)


def _write(config: ModelConfig) -> dict[str, Any]:
    fields = decoder_fields(config) | one_window(config)
    del fields["attention_bias"]
    # Without the latter, transformers takes a token that small vocabularies lack.
    share = config.rotated_dim / config.head_dim
    return fields | {"partial_rotary_factor": share, "pad_token_id": None}


_QKV, _BOTH = ("hk", "gk", "gk"), ("f", "f")
_LAYER: names.Table = {
    "self_attn.qkv_proj.weight#q": (
        ("attention", "q_DHK"), Layout("dhk", ("*hk", "d"), halves=True, parts=_QKV, part=0),
    ),
    "self_attn.qkv_proj.weight#k": (
        ("attention", "k_DGK"), Layout("dgk", ("*gk", "d"), halves=True, parts=_QKV, part=1),
    ),
    "self_attn.qkv_proj.weight#v": (
        ("attention", "v_DGK"), Layout("dgk", ("*gk", "d"), parts=_QKV, part=2),
    ),
    "self_attn.o_proj.weight": names.ATTENTION["self_attn.o_proj.weight"],
    **names.NORMS_BEFORE,
    "mlp.gate_up_proj.weight#gate": (
        ("mlp", "gate_DF"), Layout("df", ("*f", "d"), parts=_BOTH, part=0),
    ),
    "mlp.gate_up_proj.weight#up": (
        ("mlp", "up_DF"), Layout("df", ("*f", "d"), parts=_BOTH, part=1),
    ),
    "mlp.down_proj.weight": names.mlp()["mlp.down_proj.weight"],
}  # fmt: skip

PHI3 = Family(
    "phi3", "Phi3ForCausalLM", "Phi-3 and Phi-4 without LongRoPE", "window, partly rotated heads",
    _read, _write, lambda config: names.decoder_pieces(config, lambda config, dense: _LAYER),
    {
        "vocab_size": 32_064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
    },
)  # fmt: skip
