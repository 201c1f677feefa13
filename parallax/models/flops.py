"""The FLOPs that a model needs however it is split, of which MFU is a share."""

from parallax.models.config import ModelConfig
from parallax.models.parameters import FIRST_LAYERS, end_parameters, layer_parameters


def model_flops(
    config: ModelConfig,
    batch: int,
    seq_len: int,
    *,
    known_tokens: int = 0,
    unembedded: int = 1,
) -> float:
    """Return the FLOPs of a forward pass's matrix products over all devices, masked pairs excluded.

    Args:
      config: the model.
      batch, seq_len: sequences, and computed tokens per sequence.
      known_tokens: earlier tokens per sequence, whose keys and values (or latents) are cached.
      unembedded: positions per sequence that have logits.

    Latent attention is counted in the form with fewer FLOPs: of latents where tokens are known,
    otherwise of heads. Both have the same products with weights.
    """
    layer = float(sum(p.flops_per_token for p in layer_parameters(config)))
    # A tied table has the same product as a separate unembedding.
    ends = end_parameters(config.replace(tie_embeddings=False))
    unembedding = float(sum(p.flops_per_token for p in ends if p.path[0] != FIRST_LAYERS))
    first = float(sum(p.flops_per_token for p in ends if p.path[0] == FIRST_LAYERS))
    tokens = batch * seq_len
    attention = attention_flops(config, batch, seq_len, known_tokens=known_tokens)
    total = tokens * (config.stacked_layers * layer + first) + attention
    return total + batch * unembedded * unembedding


def attention_flops(
    config: ModelConfig, batch: int, seq_len: int, *, known_tokens: int = 0
) -> float:
    """Return the part of `model_flops` that scores and their values take, in all layers."""
    kinds = config.kinds
    pairs = sum(
        batch * _pairs(seq_len, known_tokens, config.causal, kinds[i % len(kinds)].window)
        for i in range(config.num_layers)
    )
    return 2.0 * pairs * config.num_heads * _attended_width(config, known_tokens)


def _pairs(seq_len: int, known_tokens: int, causal: bool, window: int | None) -> float:
    """Return the pairs of a query and a key that it sees, of one sequence in one layer."""
    if not causal:
        return float(seq_len * (known_tokens + seq_len))
    every = seq_len * (known_tokens + (seq_len + 1) / 2)
    if window is None or window >= known_tokens + seq_len:
        return float(every)
    # Query i of the computed tokens sees known_tokens + i + 1 tokens, or the window.
    short = max(0, min(seq_len, window - known_tokens))
    return short * (known_tokens + (short + 1) / 2) + float((seq_len - short) * window)


def _attended_width(config: ModelConfig, known_tokens: int) -> int:
    """Return the elements of a key and its value that a query head multiplies."""
    if config.latent is not None and known_tokens:
        return config.latent.cached + config.latent.kv_rank
    return config.head_dim + config.value_dim
