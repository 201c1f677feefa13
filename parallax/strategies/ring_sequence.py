"""Ring attention with sequence parallelism (paper `ring_sp`)."""

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.attention_parts import Ring
from parallax.parallel.order import Order
from parallax.rules import Rules
from parallax.strategy import Strategy


def ring_sequence(devices: int = 16, *, order: Order = "zigzag", nodes: int = 1) -> Strategy:
    """Everything is split over the sequence; keys and values rotate; weights are replicated.

    Args:
      devices: in all. They divide the sequence length.
      order: "zigzag" gives every device the same share of a causal mask; without a mask both
        orders cost the same.
      nodes: more than 1 is a double ring: keys rotate inside a node while every device swaps its
        own with the next node, once a node. They divide the devices.

    Raises:
      ValueError: nodes that do not divide the devices.

    Cost: per layer and microbatch a device sends 2 (P-1)/P b L kv_heads head_dim elements in their
      stored dtype, in P - 1 hops, while it attends to what the hop before brought; of N nodes'
      double ring N - 1 hops are between nodes, where one ring has P - 1 on every node's last link.
    Reference: paper `ring_sp`; Liu, Zaharia and Abbeel, "Ring Attention", 2023; Gu et al.,
      "LoongTrain", 2024.
    """
    if nodes < 1 or devices % nodes:
        raise ValueError(
            f"ring_sequence: {nodes} nodes do not divide {devices} devices. Use a divisor."
        )
    axes = {"node": nodes, "seq": devices // nodes} if nodes > 1 else {"seq": devices}
    seq = ("node", "seq") if nodes > 1 else "seq"
    return Strategy(
        "ring_sequence",
        MeshSpec(axes),
        Rules(act_seq=seq, decode=(("act_seq", None),)),
        attention=Ring(seq, order),
    )
