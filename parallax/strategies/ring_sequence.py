"""Ring attention with sequence parallelism (paper `ring_sp`)."""

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.attention_parts import Ring
from parallax.parallel.order import Order
from parallax.rules import Rules
from parallax.strategy import Strategy


def ring_sequence(devices: int = 16, *, order: Order = "zigzag") -> Strategy:
    """Everything is split over the sequence; keys and values rotate; weights are replicated.

    Args:
      devices: size of the ring. They divide the sequence length.
      order: "zigzag" gives every device the same share of a causal mask; without a mask both
        orders cost the same.

    Cost: per layer and microbatch a device sends 2 (P-1)/P b L kv_heads head_dim elements in their
      stored dtype, in P - 1 hops, while it attends to what the hop before brought.
    Reference: paper `ring_sp`; Liu, Zaharia and Abbeel, "Ring Attention", 2023.
    """
    return Strategy(
        "ring_sequence",
        MeshSpec({"seq": devices}),
        Rules(act_seq="seq", decode=(("act_seq", None),)),
        attention=Ring("seq", order),
    )
