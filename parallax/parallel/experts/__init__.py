"""The mixture of experts inside `shard_map`: routing, experts, and exchanges between devices."""

from parallax.parallel.experts.chunks import ExpertShape
from parallax.parallel.experts.exchange import Platform
from parallax.parallel.experts.expert_parts import (
    EXPERT_PARTS,
    ExchangeExperts,
    ExpertPart,
    LocalExperts,
)
from parallax.parallel.experts.fixed_routing import fixed_expert_ids
from parallax.parallel.experts.grouped_mlp import SCOPE as TILES_SCOPE
from parallax.parallel.experts.grouped_mlp import ExpertWeights, grouped_mlp
from parallax.parallel.experts.routing import (
    RouterStats,
    Routing,
    RoutingRule,
    load_balancing_loss,
    route,
    router_stats,
)

__all__ = [
    "EXPERT_PARTS",
    "TILES_SCOPE",
    "ExchangeExperts",
    "ExpertPart",
    "ExpertShape",
    "ExpertWeights",
    "LocalExperts",
    "Platform",
    "RouterStats",
    "Routing",
    "RoutingRule",
    "fixed_expert_ids",
    "grouped_mlp",
    "load_balancing_loss",
    "route",
    "router_stats",
]
