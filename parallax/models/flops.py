"""FLOPs that a model needs, however it is split: what MFU is a share of."""

from typing import Literal

from parallax.models.config import ModelConfig
from parallax.models.parameters import end_parameters, layer_parameters


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
    layer = float(sum(p.flops_per_token for p in layer_parameters(config)))
    # A tied table is multiplied as an unembedding of its own would be.
    ends = end_parameters(config.replace(tie_embeddings=False))
    unembedding = float(sum(p.flops_per_token for p in ends))
    tokens = batch if phase == "decode" else batch * seq_len
    if phase == "decode":
        pairs = float(batch) * (seq_len + 1)
    else:
        pairs = batch * seq_len * ((seq_len + 1) / 2 if config.causal else seq_len)
    attention = 4.0 * pairs * config.num_heads * config.head_dim
    unembedded = tokens if phase == "train" else batch
    total = config.num_layers * (tokens * layer + attention)
    total += unembedded * unembedding
    return 3 * total if phase == "train" else total
