"""The names and layouts of tensors that families share.

A table says of each tensor of a layer, by its name there, which parameter it holds and how. In a
name "{}" stands for an expert's number, and what follows "#" tells parts of one tensor apart. The
weight of a torch.nn.Linear has its outputs first.
"""

from collections.abc import Callable, Iterator, Mapping

from parallax.models.config import ModelConfig
from parallax.models.huggingface.tensors import Layout, Piece

Table = Mapping[str, tuple[tuple[str, ...], Layout]]

VECTOR = Layout("d", ("d",))
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Tensors that files may hold besides the parameters: constants that are not learned.
CONSTANTS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")

QUERY = Layout("dhk", ("hk", "d"), halves=True)
KEY = Layout("dgk", ("gk", "d"), halves=True)
ATTENTION: Table = {
    "self_attn.q_proj.weight": (("attention", "q_DHK"), QUERY),
    "self_attn.k_proj.weight": (("attention", "k_DGK"), KEY),
    "self_attn.v_proj.weight": (("attention", "v_DGK"), Layout("dgk", ("gk", "d"))),
    "self_attn.o_proj.weight": (("attention", "out_HKD"), Layout("hkd", ("d", "hk"))),
}
QKV_BIAS: Table = {
    "self_attn.q_proj.bias": (("attention", "q_bias_HK"), Layout("hk", ("hk",), halves=True)),
    "self_attn.k_proj.bias": (("attention", "k_bias_GK"), Layout("gk", ("gk",), halves=True)),
    "self_attn.v_proj.bias": (("attention", "v_bias_GK"), Layout("gk", ("gk",))),
}
OUT_BIAS: Table = {"self_attn.o_proj.bias": (("attention", "out_bias_D"), VECTOR)}
QK_NORM: Table = {
    f"self_attn.{x}_norm.weight": (
        ("attention", "head_norm", f"{x}_scale_K"), Layout("k", ("k",), halves=True),
    )
    for x in "qk"
}  # fmt: skip
QK_NORM_ALL: Table = {
    f"self_attn.{x}_norm.weight": (
        ("attention", "head_norm", f"{x}_scale_{heads.upper()}K"),
        Layout(f"{heads}k", (f"{heads}k",), halves=True),
    )
    for x, heads in (("q", "h"), ("k", "g"))
}
NORMS_BEFORE: Table = {
    "input_layernorm.weight": (("attention_norm", "scale"), VECTOR),
    "post_attention_layernorm.weight": (("mlp_norm", "scale"), VECTOR),
}
NORMS_AFTER: Table = {
    "post_attention_layernorm.weight": (("attention_post_norm", "scale"), VECTOR),
    "post_feedforward_layernorm.weight": (("mlp_post_norm", "scale"), VECTOR),
}
NORMS_BOTH: Table = {
    **NORMS_AFTER,
    "input_layernorm.weight": (("attention_norm", "scale"), VECTOR),
    "pre_feedforward_layernorm.weight": (("mlp_norm", "scale"), VECTOR),
}


def mlp(width: str = "f", there: str = "mlp", here: tuple[str, ...] = ("mlp",)) -> Table:
    """Return a gated MLP's tensors.

    Args:
      width: the letter of its hidden width.
      there: the start of the tensors' names.
      here: the path of the parameters.
    """
    up, down = Layout(f"d{width}", (width, "d")), Layout(f"{width}d", ("d", width))
    return {
        f"{there}.gate_proj.weight": ((*here, "gate_DF"), up),
        f"{there}.up_proj.weight": ((*here, "up_DF"), up),
        f"{there}.down_proj.weight": ((*here, "down_FD"), down),
    }


def experts(there: str, gate: str, up: str, down: str) -> Table:
    """Return the tensors of experts that have three each, and their router's.

    Args:
      there: the start of the tensors' names.
      gate, up, down: the names of an expert's matrices.
    """
    wide, narrow = Layout("df", ("f", "d")), Layout("fd", ("d", "f"))
    return {
        f"{there}.gate.weight": (("mlp", "router_DE"), Layout("de", ("e", "d"))),
        f"{there}.experts.{{}}.{gate}.weight": (("mlp", "gate_EDF"), wide),
        f"{there}.experts.{{}}.{up}.weight": (("mlp", "up_EDF"), wide),
        f"{there}.experts.{{}}.{down}.weight": (("mlp", "down_EFD"), narrow),
    }


def decoder_pieces(
    config: ModelConfig, layer_of: Callable[[ModelConfig, bool], Table]
) -> Iterator[Piece]:
    """Yield the tensors of a decoder, layer by layer.

    Args:
      config: the model.
      layer_of: the table of a layer, from the config and whether it is one of the first, dense
        layers of a model with experts.
    """
    yield Piece(EMBED, ("tokens_VD",), (), Layout("vd", ("v", "d")))
    tables = {dense: layer_of(config, dense) for dense in (True, False)}
    for number in range(config.num_layers):
        dense = number < config.dense_layers
        layer = number if dense else number - config.dense_layers
        yield from _layer(config, f"model.layers.{number}", layer, dense, tables[dense])
    yield Piece("model.norm.weight", ("final_norm", "scale"), (), VECTOR)
    if not config.tie_embeddings:
        yield Piece(HEAD, ("unembed_DV",), (), Layout("dv", ("v", "d")))


def _layer(
    config: ModelConfig, prefix: str, layer: int, dense: bool, table: Table
) -> Iterator[Piece]:
    stack = "first_layers" if dense else "layers"
    for name, (leaf, layout) in table.items():
        tensor, path = f"{prefix}.{name.partition('#')[0]}", (stack, *leaf)
        if "{}" in name:
            for expert in range(config.num_experts):
                yield Piece(tensor.format(expert), path, (layer, expert), layout)
        else:
            yield Piece(tensor, path, (layer,), layout)


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """Return the size of each of our dims, keyed by its letter."""
    latent = config.latent
    return {
        "d": config.d_model, "h": config.num_heads, "g": config.num_kv_heads,
        "k": config.head_dim, "f": config.d_ff, "v": config.vocab_size, "l": config.max_seq_len,
        "e": config.num_experts, "s": config.shared_experts * config.d_ff,
        "i": config.dense_d_ff, "r": config.rotated_dim,
        "c": latent.kv_rank if latent else 0, "j": latent.cached if latent else 0,
        "q": (latent.q_rank or 0) if latent else 0, "w": latent.value_dim if latent else 0,
        "n": config.head_dim - latent.rope_dim if latent else 0,
    }  # fmt: skip
