"""The placement of layers on devices: bytes per layer, and contiguous groups under a budget.

This package knows no strategy and no mesh: layers are bytes and costs, devices are budgets and
speeds.
"""

from parallax.placement.budget import Budget, parse_budget
from parallax.placement.footprint import Footprint, layer_footprints
from parallax.placement.grouping import Device, Placement, greedy, optimal
from parallax.placement.moving import least_moved
from parallax.placement.tiles import TileTraffic, most_tokens, tile_traffic, tiles_under
from parallax.placement.verdicts import GroupVerdict, verdicts

__all__ = [
    "Budget",
    "Device",
    "Footprint",
    "GroupVerdict",
    "Placement",
    "TileTraffic",
    "greedy",
    "layer_footprints",
    "least_moved",
    "most_tokens",
    "optimal",
    "parse_budget",
    "tile_traffic",
    "tiles_under",
    "verdicts",
]
