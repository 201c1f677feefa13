"""config.json to ModelConfig and back. What we would compute otherwise is refused by name."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from parallax.models.config import DType, ModelConfig, RopeScaling

FAMILIES = ("llama", "gpt2", "qwen3", "mixtral")
_DTYPES: tuple[DType, ...] = ("float32", "float16", "bfloat16", "float64")

Fields = Mapping[str, Any]


def read_config(folder: str | Path, dtype: DType | None = None) -> ModelConfig:
    """The model that a folder's config.json describes.

    Args:
      folder: a folder, or its config.json.
      dtype: of parameters and activations; None is the file's own.

    Raises:
      ValueError: not there, not JSON, of another family, or with a setting that this model does not
        have; every one of them is named.
    """
    path = Path(folder)
    path = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}. Give a folder with config.json and *.safetensors."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}.") from None
    if not isinstance(fields, dict) or fields.get("model_type") not in FAMILIES:
        found = fields.get("model_type") if isinstance(fields, dict) else type(fields).__name__
        raise ValueError(
            f"{path}: model_type is {found!r}, this Parallax reads {', '.join(FAMILIES)}."
        )
    reader = _Reader(path, fields)
    if dtype is not None:
        reader.fields = {**fields, "dtype": dtype}
    return _gpt2(reader) if fields["model_type"] == "gpt2" else _llama_like(reader)


def to_fields(config: ModelConfig) -> dict[str, Any]:
    """config.json of a model: the family that computes what it does.

    Raises:
      ValueError: no family does.
    """
    family = family_of(config)
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
    """Of FAMILIES, the one that computes what this model does. ValueError if none does."""
    if config.causal:
        new = config.norm == "rmsnorm" and config.positions == "rope" and config.mlp == "gated"
        if new and not config.bias and not (config.num_experts and config.qk_norm):
            return "mixtral" if config.num_experts else "qwen3" if config.qk_norm else "llama"
        old = config.norm == "layernorm" and config.positions == "learned" and config.mlp == "gelu"
        same = config.num_heads == config.num_kv_heads
        whole = config.num_heads * config.head_dim == config.d_model
        if old and config.bias and same and whole and not config.qk_norm:
            return "gpt2"
    raise ValueError(
        f"Model '{config.name}' is none of {', '.join(FAMILIES)}: these have rmsnorm, rope, a "
        "gated mlp and no bias, or (gpt2) layernorm, learned positions, gelu and bias; all are "
        "causal. Save it as a checkpoint of parallax train instead."
    )


class _Reader:
    """Fields of one file, taken with their defaults; refusals name the file and the field."""

    def __init__(self, path: Path, fields: Fields):
        self.path, self.fields = path, dict(fields)

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.fields.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{self.path}: {name} must be a positive integer, got {value!r}.")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.fields.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise ValueError(f"{self.path}: {name} must be a positive number, got {value!r}.")
        return float(value)

    def refuse(self, name: str, is_ours: Callable[[Any], bool], ours: str) -> None:
        """Raises ValueError where a field is set to what this model does not do."""
        if name in self.fields and not is_ours(self.fields[name]):
            raise ValueError(
                f"{self.path}: {name} is {self.fields[name]!r}; this model has {ours}. It would "
                "compute something else, so it is not loaded."
            )

    @property
    def name(self) -> str:
        return self.path.resolve().parent.name

    @property
    def dtype(self) -> DType:
        found = self.fields.get("dtype") or self.fields.get("torch_dtype") or "float32"
        if found not in _DTYPES:
            raise ValueError(f"{self.path}: dtype is {found!r}, expected {', '.join(_DTYPES)}.")
        return found


def _llama_like(read: _Reader) -> ModelConfig:
    family, limit = read.fields["model_type"], read.integer("max_position_embeddings", 2048)
    read.refuse("hidden_act", lambda x: x == "silu", "silu")
    for name in ("attention_bias", "mlp_bias"):
        read.refuse(name, lambda x: not x, "no bias")
    if read.fields.get("use_sliding_window", family != "qwen3"):
        read.refuse("sliding_window", lambda x: x is None or x >= limit, "full attention")
    for name in ("quantization_config", "attn_logit_softcapping", "final_logit_softcapping"):
        read.refuse(name, lambda x: x is None, "none")
    read.refuse("pretraining_tp", lambda x: x == 1, "pretraining_tp 1")
    if family == "llama":
        read.refuse("num_local_experts", lambda x: not x, "no experts")
    width, heads = read.integer("hidden_size"), read.integer("num_attention_heads")
    theta, scaling = _rope(read)
    experts: dict[str, Any] = {}
    if family == "mixtral":
        experts = {
            "num_experts": read.integer("num_local_experts", 8),
            "experts_per_token": read.integer("num_experts_per_tok", 2),
            "load_balance": float(read.fields.get("router_aux_loss_coef") or 0.0),
        }
    return ModelConfig(
        name=read.name,
        num_layers=read.integer("num_hidden_layers"),
        d_model=width,
        num_heads=heads,
        num_kv_heads=read.integer("num_key_value_heads", heads),
        head_dim=read.integer("head_dim", width // heads),
        d_ff=read.integer("intermediate_size"),
        vocab_size=read.integer("vocab_size"),
        mlp="gated",
        dtype=read.dtype,
        max_seq_len=limit,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=read.number("rms_norm_eps", 1e-6),
        qk_norm=family == "qwen3",
        tie_embeddings=bool(read.fields.get("tie_word_embeddings", False)),
        **experts,
    )


def _rope(read: _Reader) -> tuple[float, RopeScaling | None]:
    """Base and scaling: older files keep them apart, newer ones in `rope_parameters`."""
    fields = read.fields.get("rope_parameters") or {}
    theta = fields.get("rope_theta", read.fields.get("rope_theta", 10_000.0))
    fields = {**(read.fields.get("rope_scaling") or {}), **fields}
    if not isinstance(theta, int | float) or not theta > 0:
        raise ValueError(f"{read.path}: rope_theta must be a positive number, got {theta!r}.")
    if fields.get("partial_rotary_factor", 1) != 1:
        raise ValueError(f"{read.path}: partial_rotary_factor is not 1; whole heads turn here.")
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind not in ("linear", "llama3"):
        raise ValueError(
            f"{read.path}: rope type {kind!r} is not known here; default, linear and llama3 are."
        )
    try:
        if kind == "linear":
            return float(theta), RopeScaling("linear", float(fields["factor"]))
        return float(theta), RopeScaling(
            "llama3", float(fields["factor"]), float(fields["low_freq_factor"]),
            float(fields["high_freq_factor"]), int(fields["original_max_position_embeddings"]),
        )  # fmt: skip
    except KeyError as missing:
        raise ValueError(f"{read.path}: rope type {kind!r} without {missing}.") from None


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


def _gpt2(read: _Reader) -> ModelConfig:
    read.refuse("activation_function", lambda x: x == "gelu_new", "gelu_new")
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        read.refuse(name, lambda x: not x, "none of that")
    read.refuse("scale_attn_weights", bool, "scores scaled by head_dim ** -0.5")
    read.refuse("quantization_config", lambda x: x is None, "none")
    width, heads = read.integer("n_embd"), read.integer("n_head")
    if width % heads:
        raise ValueError(f"{read.path}: n_head {heads} does not divide n_embd {width}.")
    return ModelConfig(
        name=read.name,
        num_layers=read.integer("n_layer"),
        d_model=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        d_ff=read.integer("n_inner", 4 * width),
        vocab_size=read.integer("vocab_size"),
        mlp="gelu",
        norm="layernorm",
        positions="learned",
        bias=True,
        dtype=read.dtype,
        max_seq_len=read.integer("n_positions", 1024),
        norm_epsilon=read.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=bool(read.fields.get("tie_word_embeddings", True)),
    )
