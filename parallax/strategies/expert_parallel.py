"""The expert-parallel strategy: tokens travel to the devices of their experts (`cross_node_ep`)."""

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.experts import ExchangeExperts
from parallax.parallel.experts.exchange import ExchangeKind
from parallax.rules import Rules
from parallax.strategy import Strategy


def expert_parallel(
    devices: int = 16,
    *,
    nodes: int = 1,
    exchange: ExchangeKind = "dense",
    capacity_factor: float | None = None,
    chunks: int = 4,
    tile: int = 512,
) -> Strategy:
    """Split the batch and each layer's experts over the same devices; replicate everything else.

    Args:
      devices: devices in all. They divide the batch and the number of experts.
      nodes: more than 1 sends a token once to each node that holds any of its experts, and from
        there to the experts inside the node.
      exchange: "dense" sends buffers with room for every choice, "ragged" only the rows in use (on
        GPUs; emulated elsewhere, and the report says so).
      capacity_factor: None drops nothing; a number bounds each expert's rows and drops the rest,
        which makes it another model.
      chunks: pieces of a device's tokens: experts work on one while others travel.
      tile: rows of one expert that are multiplied at once.

    Cost: per layer and token, k rows of the model width to other devices and back; if dense and
      dropless, a whole buffer of as many rows as tokens for every device.
    Reference: paper `cross_node_ep`; Lepikhin et al., "GShard", 2020.
    """
    if nodes > 1:
        if devices % nodes:
            raise ValueError(f"expert_parallel: {nodes} nodes do not divide {devices} devices.")
        axes, axis = {"node": nodes, "expert": devices // nodes}, ("node", "expert")
    else:
        axes, axis = {"expert": devices}, "expert"
    experts = ExchangeExperts(axis, exchange, capacity_factor, chunks, nodes > 1, tile)
    return Strategy(
        "expert_parallel",
        MeshSpec(axes),
        Rules(act_batch=axis, expert=axis),
        experts=experts,
    )
