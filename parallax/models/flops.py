"""FLOPs that a model needs, however it is split: what MFU is a share of."""

from typing import Literal

from parallax.models.config import ModelConfig


def model_flops(
    config: ModelConfig,
    batch: int,
    seq_len: int,
    phase: Literal["prefill", "decode", "train"] = "prefill",
) -> float:
    """FLOPs of matrix products over all devices, nothing repeated and no masked pair counted.

    Args:
      config: the model.
      batch, seq_len: of a prefill or training step; a decoding step adds one token to each of batch
        sequences that have seq_len.
      phase: "prefill" unembeds the last position of a sequence, "train" all of them, and takes the
        backward pass as twice the forward pass.
    """
    heads = config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    mlp = (3 if config.mlp == "gated" else 2) * config.d_ff
    if config.num_experts:
        mlp = mlp * config.experts_per_token + config.num_experts
    layer = 2.0 * config.d_model * (heads + mlp)
    tokens = batch if phase == "decode" else batch * seq_len
    if phase == "decode":
        pairs = float(batch) * (seq_len + 1)
    else:
        pairs = batch * seq_len * ((seq_len + 1) / 2 if config.causal else seq_len)
    attention = 4.0 * pairs * config.num_heads * config.head_dim
    unembedded = tokens if phase == "train" else batch
    total = config.num_layers * (tokens * layer + attention)
    total += 2.0 * unembedded * config.d_model * config.vocab_size
    return 3 * total if phase == "train" else total
