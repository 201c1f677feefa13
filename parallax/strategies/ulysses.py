"""The Ulysses strategy: the sequence is split, but attention sees whole sequences of few heads."""

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.attention_parts import Ring, Ulysses
from parallax.parallel.order import Order
from parallax.rules import Rules
from parallax.strategy import Strategy


def ulysses(devices: int = 16, *, nodes: int = 1, order: Order = "zigzag") -> Strategy:
    """Split everything over the sequence; all-to-alls give attention whole sequences.

    Args:
      devices: devices in all. They divide the sequence length; those in a node divide the query
        heads.
      nodes: more than 1 keeps the all-to-alls inside a node, and keys and values travel around a
        ring of nodes. They divide the devices.
      order: order of the tokens in that ring.

    Raises:
      ValueError: nodes that do not divide the devices.

    Cost: all-to-alls of a device's q, k, v and output per layer and microbatch; with fewer
      key/value heads than devices, each device receives those that it needs.
    Reference: Jacobs et al., "DeepSpeed Ulysses", 2023; with a ring, Fang and Zhao, "USP", 2024.
    """
    if nodes < 1 or devices % nodes:
        raise ValueError(f"ulysses: {nodes} nodes do not divide {devices} devices. Use a divisor.")
    axes, attention = {"seq": devices}, Ulysses("seq")
    if nodes > 1:
        axes = {"node": nodes, "seq": devices // nodes}
        attention = Ulysses("seq", Ring("node", order))
    return Strategy(
        "ulysses",
        MeshSpec(axes),
        Rules(act_seq=attention.seq_axes, decode=(("act_seq", None),)),
        attention=attention,
    )
