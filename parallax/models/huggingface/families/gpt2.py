"""GPT-2: LayerNorm, learned positions, GELU, biases, and queries, keys and values in one tensor."""

from collections.abc import Iterator
from typing import Any

from parallax.models.config import ModelConfig
from parallax.models.huggingface.families.family import Family
from parallax.models.huggingface.fields import Fields
from parallax.models.huggingface.names import HEAD, VECTOR, Table
from parallax.models.huggingface.settings import GELU
from parallax.models.huggingface.tensors import Layout, Piece


def _read(fields: Fields) -> ModelConfig:
    fields.refuse("activation_function", lambda x: x in GELU, "gelu_new")
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


def _write(config: ModelConfig) -> dict[str, Any] | None:
    if config.d_model % config.num_heads:
        return None
    return {
        "n_embd": config.d_model, "n_layer": config.num_layers, "n_head": config.num_heads,
        "n_inner": config.d_ff, "n_positions": config.max_seq_len,
        "vocab_size": config.vocab_size, "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": "gelu_new", "tie_word_embeddings": config.tie_embeddings,
    }  # fmt: skip


# GPT-2's own linear layer has its inputs first.
_LAYER: Table = {
    "ln_1.weight": (("attention_norm", "scale"), VECTOR),
    "ln_1.bias": (("attention_norm", "shift"), VECTOR),
    "attn.c_proj.weight": (("attention", "out_HKD"), Layout("hkd", ("hk", "d"))),
    "attn.c_proj.bias": (("attention", "out_bias_D"), VECTOR),
    "ln_2.weight": (("mlp_norm", "scale"), VECTOR),
    "ln_2.bias": (("mlp_norm", "shift"), VECTOR),
    "mlp.c_fc.weight": (("mlp", "up_DF"), Layout("df", ("d", "f"))),
    "mlp.c_fc.bias": (("mlp", "up_bias_F"), Layout("f", ("f",))),
    "mlp.c_proj.weight": (("mlp", "down_FD"), Layout("fd", ("f", "d"))),
    "mlp.c_proj.bias": (("mlp", "down_bias_D"), VECTOR),
}
_FUSED = (("q_DHK", "q_bias_HK", "h"), ("k_DGK", "k_bias_GK", "g"), ("v_DGK", "v_bias_GK", "g"))


def _tensors(config: ModelConfig) -> Iterator[Piece]:
    yield Piece("transformer.wte.weight", ("tokens_VD",), (), Layout("vd", ("v", "d")))
    yield Piece("transformer.wpe.weight", ("positions_LD",), (), Layout("ld", ("l", "d")))
    parts = tuple(f"{heads}k" for *_, heads in _FUSED)
    for layer in range(config.num_layers):
        prefix, at = f"transformer.h.{layer}", (layer,)
        for name, (leaf, layout) in _LAYER.items():
            yield Piece(f"{prefix}.{name}", ("layers", *leaf), at, layout)
        for part, (weight, bias, heads) in enumerate(_FUSED):
            merged = f"*{heads}k"
            matrix = Layout(f"d{heads}k", ("d", merged), parts=parts, part=part)
            row = Layout(f"{heads}k", (merged,), parts=parts, part=part)
            leaf = ("layers", "attention")
            yield Piece(f"{prefix}.attn.c_attn.weight", (*leaf, weight), at, matrix)
            yield Piece(f"{prefix}.attn.c_attn.bias", (*leaf, bias), at, row)
    yield Piece("transformer.ln_f.weight", ("final_norm", "scale"), (), VECTOR)
    yield Piece("transformer.ln_f.bias", ("final_norm", "shift"), (), VECTOR)
    if not config.tie_embeddings:
        yield Piece(HEAD, ("unembed_DV",), (), Layout("dv", ("v", "d")))


GPT2 = Family(
    "gpt2", "GPT2LMHeadModel", "GPT-2, 124M to 1.5B", "LayerNorm, learned positions, biases, GELU",
    _read, _write, _tensors,
    {"vocab_size": 50_257, "n_positions": 1024, "layer_norm_epsilon": 1e-5},
)  # fmt: skip
