"""The translation of config.json to ModelConfig and back.

Settings that this model would compute differently are refused by name. Fields whose defaults differ
between families are required; published files have them.
"""

import dataclasses
from pathlib import Path
from typing import Any

from parallax.models.config import DType, ModelConfig, RopeScaling
from parallax.models.huggingface.fields import Fields, read_fields

FAMILIES = ("llama", "gpt2", "qwen3", "mixtral")
_DTYPES: tuple[DType, ...] = ("float32", "float16", "bfloat16", "float64")
# The fields that a folder must give back of a config: all but what it holds elsewhere, or holds
# only where it counts.
_HELD = {f.name for f in dataclasses.fields(ModelConfig)} - {
    "name", "dtype", "compression", "rope_theta", "rope_scaling", "experts_per_token",
    "load_balance",
}  # fmt: skip
# The names of one function: GELU by tanh, and x * sigmoid(x).
_GELU, _SILU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), ("silu", "swish")


def read_config(folder: str | Path, dtype: DType | None = None) -> ModelConfig:
    """Return the model that a folder's config.json describes.

    Args:
      folder: a folder, or its config.json.
      dtype: dtype of parameters and activations; None takes the file's, or float32 if it has none.

    Raises:
      ValueError: a file that is missing, not JSON or of another family, or unsupported settings,
        all of which are named.
    """
    path = Path(folder)
    path = path / "config.json" if path.is_dir() else path
    fields = read_fields(path, hint="Give a folder with config.json and *.safetensors.")
    family = fields.values.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"{path}: model_type is {family!r}, this Parallax reads {', '.join(FAMILIES)}."
        )
    fields.refuse("quantization_config", lambda x: x is None, "none")
    config = _gpt2(fields) if family == "gpt2" else _llama_like(fields, family)
    fields.finish()
    return config.replace(
        name=path.resolve().parent.name, dtype=_dtype(fields) if dtype is None else dtype
    )


def to_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the fields of config.json for a model, in the family that computes the same.

    Raises:
      ValueError: no family computes the same.
    """
    family = family_of(config)
    values = _fields_of(config, family)
    fields = Fields(Path("config.json"), values)
    back = _gpt2(fields) if family == "gpt2" else _llama_like(fields, family)
    pairs = ((name, getattr(config, name), getattr(back, name)) for name in _HELD)
    if lost := [f"{name} is {ours!r} (there: {theirs!r})" for name, ours, theirs in pairs
                if ours != theirs]:  # fmt: skip
        raise ValueError(
            f"Model '{config.name}': {'; '.join(lost)}. A folder of {family} would compute "
            "something else. Save it as a checkpoint of parallax train instead."
        )
    return values


def _fields_of(config: ModelConfig, family: str) -> dict[str, Any]:
    if family == "gpt2":
        return {
            "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
            "n_embd": config.d_model, "n_layer": config.num_layers, "n_head": config.num_heads,
            "n_inner": config.d_ff, "n_positions": config.max_seq_len,
            "vocab_size": config.vocab_size, "layer_norm_epsilon": config.norm_epsilon,
            "activation_function": "gelu_new", "tie_word_embeddings": config.tie_embeddings,
            "dtype": config.dtype,
        }  # fmt: skip
    fields: dict[str, Any] = {
        "model_type": family,
        "architectures": [f"{family.capitalize()}ForCausalLM"],
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
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling_fields(config.rope_scaling),
        "dtype": config.dtype,
    }
    if family == "mixtral":
        fields |= {
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.experts_per_token,
            "router_aux_loss_coef": config.load_balance,
            "sliding_window": None,
        }
    return fields


def family_of(config: ModelConfig) -> str:
    """Return the family that computes the same as a model. ValueError if none does."""
    if config.causal:
        new = config.norm == "rmsnorm" and config.positions == "rope" and config.mlp == "gated"
        mixes = config.experts_per_token > 1 and not config.qk_norm
        if new and not config.bias and (mixes or not config.num_experts):
            return "mixtral" if config.num_experts else "qwen3" if config.qk_norm else "llama"
        old = config.norm == "layernorm" and config.positions == "learned" and config.mlp == "gelu"
        same = config.num_heads == config.num_kv_heads
        whole = config.num_heads * config.head_dim == config.d_model
        if old and config.bias and same and whole and not config.qk_norm:
            return "gpt2"
    raise ValueError(
        f"Model '{config.name}' is none of {', '.join(FAMILIES)}: these have rmsnorm, rope, a "
        "gated mlp, no bias and at least two experts per token if any, or (gpt2) layernorm, "
        "learned positions, gelu and bias; all are causal. Save it as a checkpoint of parallax "
        "train instead."
    )


def _scaling_fields(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if scaling.kind == "linear":
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_seq_len,
    }


def _dtype(fields: Fields) -> DType:
    dtype = fields.values.get("dtype") or fields.values.get("torch_dtype") or "float32"
    if dtype not in _DTYPES:
        raise ValueError(f"{fields.path}: dtype is {dtype!r}, expected {', '.join(_DTYPES)}.")
    return dtype


def _llama_like(fields: Fields, family: str) -> ModelConfig:
    limit = fields.integer("max_position_embeddings")
    fields.refuse("hidden_act", lambda x: x in _SILU, "silu")
    for name in ("attention_bias", "mlp_bias"):
        fields.refuse(name, lambda x: not x, "no bias")
    if fields.flag("use_sliding_window", family != "qwen3"):
        fields.refuse(
            "sliding_window", lambda x: x is None or _at_least(x, limit), "full attention"
        )
    fields.refuse("layer_types", lambda x: x is None or _all_full(x), "full attention")
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        fields.refuse(name, lambda x: x is None, "none")
    fields.refuse("rope_interleaved", lambda x: not x, "halves of a head turn")
    if family == "llama":
        fields.refuse("num_local_experts", lambda x: not x, "no experts")
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    theta, scaling = _rope(fields, family)
    experts: dict[str, Any] = {}
    if family == "mixtral":
        fields.refuse(
            "num_experts_per_tok", lambda x: x != 1, "one choice is weighted by its probability"
        )
        experts = {
            "num_experts": fields.integer("num_local_experts"),
            "experts_per_token": fields.integer("num_experts_per_tok"),
            "load_balance": fields.number("router_aux_loss_coef", 0.001, or_zero=True),
        }
    return ModelConfig(
        name=family,
        num_layers=fields.integer("num_hidden_layers"),
        d_model=width,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads if family == "llama" else None),
        head_dim=fields.integer("head_dim", None if family == "qwen3" else width // heads),
        d_ff=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        mlp="gated",
        max_seq_len=limit,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=fields.number("rms_norm_eps"),
        qk_norm=family == "qwen3",
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        **experts,
    )


def _at_least(window: Any, tokens: int) -> bool:
    return isinstance(window, int) and window >= tokens


def _all_full(layers: Any) -> bool:
    return isinstance(layers, list) and all(kind == "full_attention" for kind in layers)


def _rope(fields: Fields, family: str) -> tuple[float, RopeScaling | None]:
    """Return base and scaling, separate in older files, in `rope_parameters` in newer ones."""
    older, newer = fields.inner("rope_scaling"), fields.inner("rope_parameters")
    base = {"rope_theta": fields.values.get("rope_theta")}
    rope = Fields(fields.path, base | older.values | newer.values)
    theta = rope.number("rope_theta", 10_000.0 if family == "llama" else None)
    rope.values.pop("rope_theta")
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise ValueError(
            f"{fields.path}: rope differs between layers; only one for all layers is supported."
        )
    for place in (fields, rope):
        place.refuse("partial_rotary_factor", lambda x: x in (None, 1), "whole heads turn")
    rope.finish()
    rope.values.pop("partial_rotary_factor", None)
    kind = rope.values.get("rope_type", rope.values.get("type", None if rope.values else "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", rope.number("factor"))
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3", rope.number("factor"), rope.number("low_freq_factor"),
            rope.number("high_freq_factor"), rope.integer("original_max_position_embeddings"),
        )  # fmt: skip
    raise ValueError(
        f"{fields.path}: rope type {kind!r} is not supported; default, linear and llama3 are."
    )


def _gpt2(fields: Fields) -> ModelConfig:
    fields.refuse("activation_function", lambda x: x in _GELU, "gelu_new")
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        fields.refuse(name, lambda x: not x, "none")
    fields.refuse("scale_attn_weights", bool, "scores scaled by head_dim ** -0.5")
    width, heads = fields.integer("n_embd"), fields.integer("n_head")
    if width % heads:
        raise ValueError(f"{fields.path}: n_head {heads} does not divide n_embd {width}.")
    return ModelConfig(
        name="gpt2",
        num_layers=fields.integer("n_layer"),
        d_model=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        d_ff=fields.integer("n_inner", 4 * width),
        vocab_size=fields.integer("vocab_size"),
        mlp="gelu",
        norm="layernorm",
        positions="learned",
        bias=True,
        max_seq_len=fields.integer("n_positions"),
        norm_epsilon=fields.number("layer_norm_epsilon"),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )
