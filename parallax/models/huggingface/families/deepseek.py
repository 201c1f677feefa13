"""DeepSeek-V2 and DeepSeek-V3: latent attention, shared and routed experts."""

import math
from typing import Any

from parallax.models.config import ModelConfig
from parallax.models.huggingface import names
from parallax.models.huggingface.families.family import Family
from parallax.models.huggingface.fields import Fields
from parallax.models.huggingface.rope_fields import read_rope, scaling_fields
from parallax.models.huggingface.settings import decoder, decoder_fields
from parallax.models.huggingface.tensors import Layout
from parallax.models.layer_kinds import LatentAttention, Router

_EPSILON = 1e-6  # of the latents' norms, whatever rms_norm_eps is


def _deepseek(fields: Fields, family: str, router: Router) -> ModelConfig:
    """Return what both have in common."""
    fields.refuse("rms_norm_eps", lambda x: x == _EPSILON, "1e-06, as the latents' norms have it")
    fields.refuse("moe_layer_freq", lambda x: x == 1, "1: experts in every layer after the first")
    if router.normalize:
        fields.refuse(
            "num_experts_per_tok", lambda x: x != 1, "one choice is weighted by its probability"
        )
    heads = fields.integer("num_attention_heads")
    if fields.values.get("num_key_value_heads") is not None:
        fields.refuse("num_key_value_heads", lambda x: x == heads, f"{heads}, as many as heads")
    rope, rotated = read_rope(fields), fields.integer("qk_rope_head_dim")
    width = rotated + fields.integer("qk_nope_head_dim")
    rank, first = fields.values.get("q_lora_rank"), fields.values.get("first_k_dense_replace")
    shared = fields.values.get("n_shared_experts")
    return decoder(
        fields, family, rope, has=("n_routed_experts",),
        num_kv_heads=heads,
        head_dim=width,
        d_ff=fields.integer("moe_intermediate_size"),
        latent=LatentAttention(
            kv_rank=fields.integer("kv_lora_rank"),
            q_rank=None if rank is None else fields.integer("q_lora_rank"),
            rope_dim=rotated,
            value_dim=fields.integer("v_head_dim"),
        ),
        score_scale=None if rope.score_factor == 1 else width**-0.5 * rope.score_factor,
        num_experts=fields.integer("n_routed_experts"),
        experts_per_token=fields.integer("num_experts_per_tok"),
        shared_experts=fields.integer("n_shared_experts") if shared else 0,
        dense_layers=fields.integer("first_k_dense_replace") if first else 0,
        dense_d_ff=fields.integer("intermediate_size") if first else 0,
        router=router,
        load_balance=fields.number("aux_loss_alpha", 0.001, or_zero=True),
    )  # fmt: skip


def _fields(config: ModelConfig) -> dict[str, Any] | None:
    """Return the settings of what both have in common."""
    latent, router = config.latent, config.router
    if latent is None or router is None or not config.num_experts:
        return None
    fields = decoder_fields(config)
    del fields["head_dim"]
    if config.rope_scaling is not None:
        scale = config.score_scale
        factor = 1.0 if scale is None else scale * math.sqrt(config.head_dim)
        fields["rope_scaling"] = scaling_fields(config.rope_scaling, factor)
    return fields | {
        "intermediate_size": config.dense_d_ff or config.d_ff,
        "moe_intermediate_size": config.d_ff,
        "qk_nope_head_dim": config.head_dim - latent.rope_dim,
        "qk_rope_head_dim": latent.rope_dim,
        "v_head_dim": latent.value_dim,
        "kv_lora_rank": latent.kv_rank,
        "q_lora_rank": latent.q_rank,
        "n_routed_experts": config.num_experts,
        "n_shared_experts": config.shared_experts,
        "num_experts_per_tok": config.experts_per_token,
        "first_k_dense_replace": config.dense_layers,
        "moe_layer_freq": 1,
        "n_group": router.groups,
        "topk_group": router.groups_per_token,
        "routed_scaling_factor": router.scale,
        "norm_topk_prob": router.normalize,
        "aux_loss_alpha": config.load_balance,
    }


def _read_v2(fields: Fields) -> ModelConfig:
    method = fields.values.get("topk_method")
    methods = ("greedy", "group_limited_greedy")
    fields.refuse("topk_method", lambda x: x in methods, " or ".join(methods))
    fields.refuse("scoring_func", lambda x: x == "softmax", "softmax")
    # Published models leave these weights as they are, and the two readers differ where not.
    fields.refuse("norm_topk_prob", lambda x: not x, "false")
    grouped = method == methods[1]
    router = Router(
        normalize=False,
        scale=fields.number("routed_scaling_factor"),
        groups=fields.integer("n_group") if grouped else 1,
        groups_per_token=fields.integer("topk_group") if grouped else 1,
    )
    return _deepseek(fields, "deepseek_v2", router)


def _write_v2(config: ModelConfig) -> dict[str, Any] | None:
    fields = _fields(config)
    if fields is None or config.router is None:
        return None
    grouped = config.router.groups > 1
    return fields | {
        "topk_method": "group_limited_greedy" if grouped else "greedy",
        "scoring_func": "softmax",
    }


def _read_v3(fields: Fields) -> ModelConfig:
    fields.refuse("topk_method", lambda x: x == "noaux_tc", "noaux_tc")
    fields.refuse("scoring_func", lambda x: x == "sigmoid", "sigmoid")
    fields.refuse("rope_interleave", bool, "pairs of a head are neighbours")
    router = Router(
        scores="sigmoid",
        normalize=fields.flag("norm_topk_prob", True),
        scale=fields.number("routed_scaling_factor"),
        bias="choice",
        groups=fields.integer("n_group"),
        groups_per_token=fields.integer("topk_group"),
        group_score="two_largest",
    )
    return _deepseek(fields, "deepseek_v3", router)


def _write_v3(config: ModelConfig) -> dict[str, Any] | None:
    fields = _fields(config)
    if fields is None:
        return None
    return fields | {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "rope_interleave": True}


_A, _KV = ("attention",), ("n", "w")
_LATENT: names.Table = {
    # Pairs are neighbours here, as ours are, so that no columns change places.
    "self_attn.kv_a_proj_with_mqa.weight": ((*_A, "kva_DT"), Layout("dj", ("j", "d"))),
    "self_attn.kv_a_layernorm.weight": ((*_A, "kva_norm", "scale"), Layout("c", ("c",))),
    "self_attn.kv_b_proj.weight#k": (
        (*_A, "kb_CHK"), Layout("chn", ("h*n", "c"), parts=_KV, part=0),
    ),
    "self_attn.kv_b_proj.weight#v": (
        (*_A, "vb_CHV"), Layout("chw", ("h*w", "c"), parts=_KV, part=1),
    ),
    "self_attn.o_proj.weight": ((*_A, "out_HVD"), Layout("hwd", ("d", "hw"))),
    **names.NORMS_BEFORE,
}  # fmt: skip
_QUERIES: names.Table = {
    "self_attn.q_proj.weight": ((*_A, "q_DHK"), Layout("dhk", ("hk", "d"))),
}
_LATENT_QUERIES: names.Table = {
    "self_attn.q_a_proj.weight": ((*_A, "qa_DR"), Layout("dq", ("q", "d"))),
    "self_attn.q_a_layernorm.weight": ((*_A, "qa_norm", "scale"), Layout("q", ("q",))),
    "self_attn.q_b_proj.weight": ((*_A, "q_RHK"), Layout("qhk", ("hk", "q"))),
}
_CHOICE_BIAS: names.Table = {
    "mlp.gate.e_score_correction_bias": (("mlp", "choice_bias_E"), Layout("e", ("e",))),
}


def _layer(config: ModelConfig, dense: bool) -> names.Table:
    assert config.latent is not None
    queries = _QUERIES if config.latent.q_rank is None else _LATENT_QUERIES
    table = {**queries, **_LATENT}
    if dense:
        return {**table, **names.mlp("i")}
    table |= names.experts("mlp", "gate_proj", "up_proj", "down_proj")
    if config.shared_experts:
        table |= names.mlp("s", "mlp.shared_experts", ("mlp", "shared"))
    biased = config.router is not None and config.router.bias == "choice"
    return {**table, **(_CHOICE_BIAS if biased else {})}


_DEFAULTS = {
    "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "kv_lora_rank": 512, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip

DEEPSEEK_V2 = Family(
    "deepseek_v2", "DeepseekV2ForCausalLM", "DeepSeek-V2 and V2-Lite",
    "latent attention, shared and routed experts in groups, dense first layers",
    _read_v2, _write_v2, lambda config: names.decoder_pieces(config, _layer),
    {
        **_DEFAULTS, "vocab_size": 102_400, "max_position_embeddings": 2048,
        "n_routed_experts": 64, "n_shared_experts": 2, "moe_intermediate_size": 1407,
        "intermediate_size": 11_008, "first_k_dense_replace": 0, "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
    },
)  # fmt: skip

DEEPSEEK_V3 = Family(
    "deepseek_v3", "DeepseekV3ForCausalLM", "DeepSeek-V3, V3.1 and R1",
    "latent attention, shared and routed experts in groups with choice biases, dense first layers",
    _read_v3, _write_v3, lambda config: names.decoder_pieces(config, _layer),
    {
        **_DEFAULTS, "vocab_size": 129_280, "max_position_embeddings": 4096,
        "num_experts_per_tok": 8, "n_routed_experts": 256, "n_shared_experts": 1,
        "moe_intermediate_size": 2048, "intermediate_size": 18_432, "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4,
    },
    # Layers after the last predict tokens beyond the next one.
    ignored=lambda config: (f"model.layers.{config.num_layers}.",),
    quantized=("fp8",),
)  # fmt: skip
