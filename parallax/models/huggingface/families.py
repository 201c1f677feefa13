"""The names and layouts of each family's tensors."""

from collections.abc import Iterator

from parallax.models.config import ModelConfig
from parallax.models.huggingface.configs import family_of
from parallax.models.huggingface.tensors import Layout, Piece

_NORM = Layout("d", ("d",))
# The weight of a torch.nn.Linear has its outputs first.
_LLAMA = {
    "input_layernorm.weight": (("attention_norm", "scale"), _NORM),
    "self_attn.q_proj.weight": (("attention", "q_DHK"), Layout("dhk", ("hk", "d"), halves=True)),
    "self_attn.k_proj.weight": (("attention", "k_DGK"), Layout("dgk", ("gk", "d"), halves=True)),
    "self_attn.v_proj.weight": (("attention", "v_DGK"), Layout("dgk", ("gk", "d"))),
    "self_attn.o_proj.weight": (("attention", "out_HKD"), Layout("hkd", ("d", "hk"))),
    "post_attention_layernorm.weight": (("mlp_norm", "scale"), _NORM),
}
_QK_NORM = {
    f"self_attn.{x}_norm.weight": (
        ("attention", "head_norm", f"{x}_scale_K"), Layout("k", ("k",), halves=True),
    )
    for x in "qk"
}  # fmt: skip
_UP, _DOWN = Layout("df", ("f", "d")), Layout("fd", ("d", "f"))
_MLP = {
    "mlp.gate_proj.weight": (("mlp", "gate_DF"), _UP),
    "mlp.up_proj.weight": (("mlp", "up_DF"), _UP),
    "mlp.down_proj.weight": (("mlp", "down_FD"), _DOWN),
}
_ROUTER = {"block_sparse_moe.gate.weight": (("mlp", "router_DE"), Layout("de", ("e", "d")))}
_EXPERT = {
    "w1.weight": (("mlp", "gate_EDF"), _UP),
    "w3.weight": (("mlp", "up_EDF"), _UP),
    "w2.weight": (("mlp", "down_EFD"), _DOWN),
}
# GPT-2's own linear layer has its inputs first, and queries, keys and values in one tensor.
_GPT2 = {
    "ln_1.weight": (("attention_norm", "scale"), _NORM),
    "ln_1.bias": (("attention_norm", "shift"), _NORM),
    "attn.c_proj.weight": (("attention", "out_HKD"), Layout("hkd", ("hk", "d"))),
    "attn.c_proj.bias": (("attention", "out_bias_D"), _NORM),
    "ln_2.weight": (("mlp_norm", "scale"), _NORM),
    "ln_2.bias": (("mlp_norm", "shift"), _NORM),
    "mlp.c_fc.weight": (("mlp", "up_DF"), Layout("df", ("d", "f"))),
    "mlp.c_fc.bias": (("mlp", "up_bias_F"), Layout("f", ("f",))),
    "mlp.c_proj.weight": (("mlp", "down_FD"), Layout("fd", ("f", "d"))),
    "mlp.c_proj.bias": (("mlp", "down_bias_D"), _NORM),
}
_FUSED = (("q_DHK", "q_bias_HK", "h"), ("k_DGK", "k_bias_GK", "g"), ("v_DGK", "v_bias_GK", "g"))

# Tensors that files may hold besides the parameters: constants that are not learned.
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
HEAD = "lm_head.weight"


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """Return the size of each of our dims, keyed by its letter."""
    return {
        "d": config.d_model, "h": config.num_heads, "g": config.num_kv_heads,
        "k": config.head_dim, "f": config.d_ff, "v": config.vocab_size, "l": config.max_seq_len,
        "e": config.num_experts,
    }  # fmt: skip


def pieces_of(config: ModelConfig) -> list[Piece]:
    """Return every tensor of a model's folder as pieces of our parameters, layer by layer.

    A tied unembedding has no tensor of its own.
    """
    return list((_gpt2 if family_of(config) == "gpt2" else _llama_like)(config))


def _llama_like(config: ModelConfig) -> Iterator[Piece]:
    yield Piece("model.embed_tokens.weight", ("tokens_VD",), (), Layout("vd", ("v", "d")))
    table = _LLAMA | (_QK_NORM if config.qk_norm else {})
    table |= _ROUTER if config.num_experts else _MLP
    for layer in range(config.num_layers):
        for name, (leaf, layout) in table.items():
            yield Piece(f"model.layers.{layer}.{name}", ("layers", *leaf), (layer,), layout)
        for expert in range(config.num_experts):
            prefix = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
            for name, (leaf, layout) in _EXPERT.items():
                yield Piece(f"{prefix}.{name}", ("layers", *leaf), (layer, expert), layout)
    yield Piece("model.norm.weight", ("final_norm", "scale"), (), _NORM)
    if not config.tie_embeddings:
        yield Piece(HEAD, ("unembed_DV",), (), Layout("dv", ("v", "d")))


def _gpt2(config: ModelConfig) -> Iterator[Piece]:
    yield Piece("transformer.wte.weight", ("tokens_VD",), (), Layout("vd", ("v", "d")))
    yield Piece("transformer.wpe.weight", ("positions_LD",), (), Layout("ld", ("l", "d")))
    for layer in range(config.num_layers):
        prefix, at = f"transformer.h.{layer}", (layer,)
        for name, (leaf, layout) in _GPT2.items():
            yield Piece(f"{prefix}.{name}", ("layers", *leaf), at, layout)
        for part, (weight, bias, heads) in enumerate(_FUSED):
            matrix = Layout(f"d{heads}k", ("d", f"{heads}k"), part=part, parts=3)
            row = Layout(f"{heads}k", (f"{heads}k",), part=part, parts=3)
            leaf = ("layers", "attention")
            yield Piece(f"{prefix}.attn.c_attn.weight", (*leaf, weight), at, matrix)
            yield Piece(f"{prefix}.attn.c_attn.bias", (*leaf, bias), at, row)
    yield Piece("transformer.ln_f.weight", ("final_norm", "scale"), (), _NORM)
    yield Piece("transformer.ln_f.bias", ("final_norm", "shift"), (), _NORM)
    if not config.tie_embeddings:
        yield Piece(HEAD, ("unembed_DV",), (), Layout("dv", ("v", "d")))
