"""The bytes that a ragged exchange sends for known choices, derived without running it.

Plain NumPy. Shapes: P devices, N nodes of R devices each.
"""

from collections.abc import Mapping

import numpy as np

from parallax.parallel.experts.chunks import ExpertShape, devices_of
from parallax.parallel.experts.fixed_routing import rows_between, rows_to_nodes

BytesByAxes = dict[tuple[str, ...], np.ndarray]


def flat_bytes(
    axes: tuple[str, ...], shape: ExpertShape, sizes: Mapping[str, int], ids_Tk: np.ndarray
) -> BytesByAxes:
    """Return the bytes of rows that leave each device in one dropless forward call, both ways.

    Args:
      axes: mesh axes of the exchange.
      shape: sizes on one device.
      sizes: mesh axis -> size.
      ids_Tk: choices of all devices' tokens, device by device.

    Returns:
      Mesh axes -> [P].

    Raises:
      ValueError: choices for another number of tokens.
    """
    devices = _check_tokens(axes, shape, sizes, ids_Tk)
    rows = rows_between(ids_Tk, shape.num_experts, devices)
    return {axes: _leaving(rows) * shape.width * shape.item_bytes}


def node_bytes(
    axes: tuple[str, ...], shape: ExpertShape, sizes: Mapping[str, int], ids_Tk: np.ndarray
) -> BytesByAxes:
    """Return the bytes of `flat_bytes` with relays: between nodes on axes[0], inside on axes[1]."""
    devices = _check_tokens(axes, shape, sizes, ids_Tk)
    nodes, ranks = (sizes[axis] for axis in axes)
    per_row = shape.width * shape.item_bytes
    rows = rows_between(ids_Tk, shape.num_experts, devices)
    to_nodes = rows_to_nodes(ids_Tk, shape.num_experts, nodes, devices)
    # Between nodes, devices of one rank exchange; inside a node, a relay sends all nodes' tokens.
    between = to_nodes.reshape(nodes, ranks, nodes)
    within = rows.reshape(nodes, ranks, nodes, ranks).sum(axis=0)  # [rank, node, rank]
    by_rank = np.stack([_leaving(between[:, r]) for r in range(ranks)], axis=1)
    by_node = np.stack([_leaving(within[:, n]) for n in range(nodes)])
    return {
        axes[:1]: by_rank.reshape(-1) * per_row,
        axes[1:]: by_node.reshape(-1) * per_row,
    }


def _leaving(rows_PP: np.ndarray) -> np.ndarray:
    """Return the rows that leave each device: its own to others, and others' outputs home."""
    return rows_PP.sum(axis=1) + rows_PP.sum(axis=0) - 2 * np.diag(rows_PP)


def _check_tokens(axes, shape: ExpertShape, sizes, ids_Tk) -> int:
    devices = devices_of(axes, sizes)
    if len(ids_Tk) != devices * shape.tokens:
        raise ValueError(
            f"derived bytes: expected choices of {devices} x {shape.tokens} tokens, got "
            f"{len(ids_Tk)}. Give those of all devices."
        )
    return devices
