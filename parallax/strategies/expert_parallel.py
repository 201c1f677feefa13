"""Experts on devices of their own, tokens travel to them (paper `cross_node_ep`)."""

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
    """The batch and the experts of each layer over the same devices; everything else replicated.

    Args:
      devices: they divide the experts and the batch; one expert of each layer a device if there are
        as many.
      nodes: more than 1 sends a token once to each node that has an expert of its, and from there
        on inside the node.
      exchange: "dense" sends buffers with room for every choice, "ragged" the rows there are (GPU;
        emulated elsewhere, and the report says so).
      capacity_factor: None drops nothing; a number bounds each expert's rows and drops the rest,
        which is another model.
      chunks: pieces of a device's tokens: experts work on one while others travel.
      tile: rows of one expert that are multiplied at once.

    Cost: per layer and token k rows of the width to other devices and back; dense and dropless, a
      whole buffer of as many rows as tokens for every device.
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
