"""The computation inside `shard_map`, which can be imported alone into any shard_map."""

from parallax.parallel.order import ORDERS, local_positions, to_order, undo_order
from parallax.parallel.ring_attention import ring_attention

__all__ = ["ORDERS", "local_positions", "ring_attention", "to_order", "undo_order"]
