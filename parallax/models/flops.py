"""The FLOPs that a model needs however it is split, of which MFU is a share."""

from parallax.models.config import ModelConfig
from parallax.models.parameters import end_parameters, layer_parameters


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
      known_tokens: earlier tokens per sequence, whose keys and values are cached.
      unembedded: positions per sequence that have logits.
    """
    layer = float(sum(p.flops_per_token for p in layer_parameters(config)))
    # A tied table has the same product as a separate unembedding.
    ends = end_parameters(config.replace(tie_embeddings=False))
    unembedding = float(sum(p.flops_per_token for p in ends))
    tokens = batch * seq_len
    pairs = tokens * (known_tokens + ((seq_len + 1) / 2 if config.causal else seq_len))
    attention = 4.0 * pairs * config.num_heads * config.head_dim
    total = config.num_layers * (tokens * layer + attention)
    return total + batch * unembedded * unembedding
