"""The papers' baseline: Megatron tensor parallelism inside a node, GPipe stages between nodes."""

from typing import Literal

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.layer_parts import Pipeline, Scan
from parallax.rules import Rules
from parallax.strategy import Strategy


def tensor_pipeline(
    tensor: int = 8,
    stage: int = 2,
    *,
    microbatches: int | None = None,
    sequence_parallel_norms: bool = False,
    split_kv_heads: bool = True,
    reduce_dtype: str | None = None,
    experts: Literal["tensor", "colocated"] = "tensor",
) -> Strategy:
    """Split matrices by columns and rows over `tensor`, and contiguous layers over `stage`.

    Args:
      tensor: devices in a tensor group, kept inside a node. They divide heads and d_ff, and divide
        kv_heads or are a multiple of them: then all devices compute every key/value head.
      stage: pipeline stages. They divide the number of layers.
      microbatches: GPipe's M; None takes the caller's or the paper's number.
      sequence_parallel_norms: also split the residual stream and norms over the sequence, which
        replaces an all-reduce by a reduce-scatter and an all-gather and saves memory (off, as in
        the papers).
      split_kv_heads: False computes all key/value heads on every device, whatever their number.
      reduce_dtype: dtype in which partial sums cross the wire; None is the activations' own.
      experts: in a model with experts, "tensor" splits each over `tensor`, "colocated" spreads
        whole experts over it; either way a device runs them on all its tokens that chose them.

    Cost: two all-reduces of [b, L, D] over `tensor` per layer and microbatch; one handoff of a
      tensor rank's share [b, L, D / tensor] over `stage` per tick, and one all-gather of it.
    Reference: Shoeybi et al., "Megatron-LM", 2019; Huang et al., "GPipe", 2019; Korthikanti et al.,
      "Reducing Activation Recomputation", 2022 (sequence-parallel norms).
    """
    if experts not in ("tensor", "colocated"):
        raise ValueError(f"tensor_pipeline: experts must be tensor or colocated; got {experts!r}.")
    kv_heads = "tensor" if split_kv_heads else None
    colocated = experts == "colocated"
    rules = Rules(
        heads="tensor",
        kv_heads=kv_heads,
        mlp=None if colocated else "tensor",
        expert="tensor" if colocated else None,
        lookup=None if sequence_parallel_norms else "tensor",
        vocab=("stage", "tensor") if stage > 1 else "tensor",
        layers="stage" if stage > 1 else None,
        act_heads="tensor",
        # With whole key/value heads on every device, each keeps those its own query heads read.
        act_kv_heads="tensor",
        act_mlp=None if colocated else "tensor",
        act_norm_seq="tensor" if sequence_parallel_norms else None,
        act_vocab=("stage", "tensor") if stage > 1 else "tensor",
        decode=(("act_norm_seq", None),),
    )
    axes = {"stage": stage, "tensor": tensor} if stage > 1 else {"tensor": tensor}
    layers = Pipeline("stage", microbatches) if stage > 1 else Scan()
    return Strategy(
        "tensor_pipeline_colocated" if colocated else "tensor_pipeline",
        MeshSpec(axes),
        rules,
        layers=layers,
        reduce_dtype=reduce_dtype,
    )
