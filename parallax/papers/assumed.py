"""Assumptions that several papers share, written once."""

from parallax.papers.paper import Assumption

CAUSAL = Assumption("causal", "true", "tokens per second of generated text imply a decoder")
VOCAB = Assumption("vocab_size", "32000", "no paper gives one; divisible by 16 devices")
MLP_GELU = Assumption("mlp", "two matrices, GELU", "'feed-forward' with one hidden size, no gate named")
NORM = Assumption("norm", "RMSNorm before each half block", "not given; one scale vector, negligible cost")
ROPE = Assumption("positions", "RoPE", "not given; no parameters, exact under every split")
CLUSTER = Assumption(
    "cluster", "h100_2x8", "16 H100 are sold as two nodes of eight; --cluster=h100_nvl16 is one domain"
)
MICROBATCHES = Assumption(
    "microbatches", "64", "not given; 16 sequences at a time keep activations within memory"
)
PREFILL = Assumption(
    "workload", "prefill of whole sequences to last-position logits",
    "batch and length are given, decoding lengths are not",
)  # fmt: skip
DENSE = (CAUSAL, VOCAB, MLP_GELU, NORM, ROPE, CLUSTER, MICROBATCHES, PREFILL)
