"""The ring-sequence strategy: ring attention with sequence parallelism (paper `ring_sp`)."""

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.attention_parts import Ring
from parallax.parallel.order import Order
from parallax.rules import Rules
from parallax.strategy import Strategy


def ring_sequence(devices: int = 16, *, order: Order = "zigzag", nodes: int = 1) -> Strategy:
    """Split everything over the sequence, rotate keys and values, and replicate the weights.

    Args:
      devices: devices in all. They divide the sequence length.
      order: "zigzag" gives every device the same share of a causal mask's work; "natural" leaves
        tokens in contiguous pieces. Without a mask both cost the same.
      nodes: more than 1 makes a double ring: keys rotate inside each node while every device swaps
        its keys with the next node, once per rotation. They divide the devices.

    Raises:
      ValueError: nodes that do not divide the devices.

    Cost: per layer and microbatch, each of P devices sends 2 (P-1)/P b L kv_heads head_dim elements
      in their stored dtype, in P - 1 hops, each while it attends to the keys of the hop before. A
      double ring over N nodes crosses between nodes in N - 1 hops; a single ring, in all P - 1.
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
