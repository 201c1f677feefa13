"""The two-level strategy: groups of heads, and slices of each head (paper `two_level`)."""

from parallax.meshes.cluster import DEFAULT_CLUSTER
from parallax.meshes.mesh import MeshSpec
from parallax.parallel.head_slices import HeadSlices, Reduction
from parallax.rules import Rules
from parallax.strategy import Strategy


def two_level(
    groups: int = 4,
    slices: int = 4,
    *,
    reduction: Reduction = "auto",
    cluster: str = DEFAULT_CLUSTER,
    split_kv_heads: bool = True,
) -> Strategy:
    """Split heads over `head_group`, each head's width over `head_slice`, and the rest over both.

    Args:
      groups: groups of heads; they divide heads, and divide kv_heads or are a multiple of them:
        then every group computes all key/value heads.
      slices: slices of each head; they divide head_dim, and groups * slices divides d_ff, the
        vocabulary and d_model.
      reduction: how slices of a head become attention, see `HeadSlices`; "local" makes it another
        model.
      cluster: the cluster whose rates decide "auto".
      split_kv_heads: False computes all key/value heads of a slice in every group, whatever
        their number.

    Latent attention has one key for all heads and no slices of them: both mesh axes deal out its
    heads, so that groups * slices divides heads, and only reduction="auto" can run.

    Cost: two all-reduces of [b, L, D] over both mesh axes per layer and microbatch, and the
      transfers of `HeadSlices` over `head_slice`, inside a node if slices divide its devices.
    Reference: paper `two_level`.
    """
    both = ("head_group", "head_slice")
    rules = Rules(
        heads="head_group",
        kv_heads="head_group" if split_kv_heads else None,
        head_dim="head_slice",
        mlp=both,
        vocab=both,
        lookup=both,
        act_heads="head_group",
        act_kv_heads="head_group",
        act_mlp=both,
        act_vocab=both,
    )
    mesh = MeshSpec({"head_group": groups, "head_slice": slices})
    attention = HeadSlices("head_slice", reduction, cluster=cluster)
    return Strategy("two_level", mesh, rules, attention=attention)
