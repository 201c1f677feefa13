"""The assumptions and sizes that several papers share."""

from parallax.models.config import ModelConfig
from parallax.papers.paper import Assumption

VOCAB_SIZE = 32_000
MICROBATCHES = 64
CLUSTER = "h100_2x8"

# Three papers run layers of these sizes; they differ in how many.
WIDE_LAYERS = ModelConfig(
    name="wide",
    num_layers=1,
    d_model=8192,
    num_heads=16,
    num_kv_heads=16,
    head_dim=512,
    d_ff=32768,
    vocab_size=VOCAB_SIZE,
    mlp="gelu",
    norm="rmsnorm",
    positions="rope",
    causal=True,
    dtype="float16",
)

_HALVES = "Not given; a language model that generates text sees earlier tokens only."


def common_assumptions(
    *, microbatches: int | None = None, mlp: str | None = "gelu"
) -> tuple[Assumption, ...]:
    """Return the assumptions that every paper shares.

    Args:
      microbatches: the number chosen, or None where the paper gives it.
      mlp: the MLP chosen, or None where the paper gives its matrices.
    """
    found = [
        Assumption("attention mask", "causal", _HALVES),
        Assumption("key/value heads", "as many as query heads (MHA)", "No grouping is mentioned."),
        Assumption(
            "vocabulary", f"{VOCAB_SIZE} tokens", "Not given; the size of common tokenizers."
        ),
        Assumption(
            "norm", "RMSNorm before each half block", "Only 'layer norm' or nothing is said."
        ),
        Assumption("positions", "RoPE", "Not given; what current decoder models use."),
        Assumption(
            "accumulation",
            "float32 inside matrix products and softmax",
            "Papers say FP16 or mixed precision; sums of 32768 terms in FP16 would not hold.",
        ),
        Assumption(
            "what TPS counts",
            "prompt tokens of one forward pass: batch x length / seconds, last-position logits out",
            "Batch and length are given, output lengths are not.",
        ),
        Assumption(
            "cluster",
            f"{CLUSTER}: two nodes of eight H100 SXM, one 400 Gb/s card a GPU between them",
            "16 H100 are given, their wiring is not; --cluster=h100_nvl16 is the other reading.",
        ),
        Assumption(
            "kernels of matrix products",
            "the library's (cuBLAS), in every compiled program",
            "Without a GPU nothing is autotuned; a run times both and mostly takes the library's "
            "for large ones. XLA's own would copy each layer's weights first.",
        ),
        Assumption(
            "kernels written by hand",
            "60 % of the rate of products, with --kernels=mosaic",
            "No GPU has run ours; it is what attention with heads of 512 aims at. Their FLOPs and "
            "bytes are as they declare.",
        ),
        Assumption(
            "usable memory",
            "0.92 of each GPU's",
            "Room for NCCL, cuBLAS and fragmentation, which no compiled program counts.",
        ),
    ]
    if mlp == "gelu":
        found.append(
            Assumption("MLP", "two matrices, GELU", "Only the hidden size is given, not the gate.")
        )
    if microbatches is not None:
        found.append(
            Assumption(
                "microbatches",
                f"{microbatches}, for every strategy that can divide its batch so",
                "Not given; at 64 the bubble of two stages adds 1/64, and one microbatch fits.",
            )
        )
    return tuple(found)
