"""FLOPs that a model needs, however it is split: what MFU is a share of."""

from parallax.models.config import ModelConfig


def model_flops(
    config: ModelConfig,
    batch: int,
    seq_len: int,
    *,
    known_tokens: int = 0,
    unembedded: int = 1,
) -> float:
    """FLOPs of a forward pass's matrix products over all devices, no masked pair counted.

    Args:
      config: the model.
      batch, seq_len: sequences, and tokens of each that are computed.
      known_tokens: of each sequence before these; their keys and values are there.
      unembedded: positions of each sequence that have logits.
    """
    heads = config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    mlp = (3 if config.mlp == "gated" else 2) * config.d_ff
    if config.num_experts:
        mlp = mlp * config.experts_per_token + config.num_experts
    layer = 2.0 * config.d_model * (heads + mlp)
    tokens = batch * seq_len
    pairs = tokens * (known_tokens + ((seq_len + 1) / 2 if config.causal else seq_len))
    attention = 4.0 * pairs * config.num_heads * config.head_dim
    total = config.num_layers * (tokens * layer + attention)
    return total + 2.0 * (batch * unembedded) * config.d_model * config.vocab_size
