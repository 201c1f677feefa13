"""The time of experts: their products over groups of rows, and the exchange of the rows.

A device has `experts / expert` experts and runs the rows that were routed to them: as many weights
are read as experts have rows, however few. Dispatch sends each token once to each device that has
one of its experts, and combine brings the results back.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from parallax.cost.gemm import beside

_ITEM = 2  # bytes per element of weights and rows
_TILE_ROWS = (16, 32, 64, 128)
_TILE_COLUMNS = 128
COMBINE_ITEM = 2.0
DISPATCH_ITEM = 1 + 4 / 128  # FP8 with one float32 scale per 128 elements
_FEW_NODES = 4


@dataclass(frozen=True)
class GroupedRates:
    """The fitted rates of one GPU's MLP over experts in 16 bits.

    Attributes:
      kernel: the implementation that was measured.
      flops_per_s: FLOP/s of all SMs in the main loop of a tile.
      bytes_per_s: bytes of weights and rows through memory per second.
      start_s: seconds of sorting the rows, starts and the sum over each token's experts.
      tile_s: seconds per tile of 128 x 128 besides its products.
      expert_s: seconds per expert that has rows.
      all_rows: passes over the rows of all devices, of a kernel that does not pack its own.
      overlap: as in `GemmRates`, of tiles and bytes.
    """

    kernel: str
    flops_per_s: float
    bytes_per_s: float
    start_s: float
    tile_s: float
    expert_s: float
    all_rows: float
    overlap: float


@dataclass(frozen=True)
class RowExchangeRates:
    """The fitted rates of one direction of the exchange of rows, dispatch or combine.

    Attributes:
      start_s: seconds of an exchange of few rows in a node.
      link_bytes_per_s: bytes per second that a device sends to others of its node.
      sm_bytes_per_s: bytes per second that one SM copies.
      token_s: seconds of one SM per token.
      node_s: more seconds to start, per doubling of the nodes.
      network_bytes_per_s: bytes per second that a device sends to other nodes, on up to four.
      far_bytes_per_s: likewise on eight nodes or more.
    """

    start_s: float
    link_bytes_per_s: float
    sm_bytes_per_s: float
    token_s: float
    node_s: float
    network_bytes_per_s: float
    far_bytes_per_s: float


@dataclass(frozen=True)
class ExpertRates:
    """The fitted rates of experts: their products, and the exchange of rows in both directions."""

    grouped: GroupedRates
    dispatch: RowExchangeRates
    combine: RowExchangeRates


class Groups(NamedTuple):
    """Many MLPs over experts: sizes as arrays [r], see `grouped_seconds`."""

    tokens: np.ndarray
    hidden: np.ndarray
    inter: np.ndarray
    top_k: np.ndarray
    experts: np.ndarray
    tensor: np.ndarray
    expert: np.ndarray
    skew: np.ndarray


class RowExchanges(NamedTuple):
    """Many exchanges of rows: sizes as arrays [r], see `dispatch_seconds`."""

    tokens: np.ndarray
    hidden: np.ndarray
    top_k: np.ndarray
    sms: np.ndarray
    nodes: np.ndarray
    per_node: np.ndarray


def grouped_seconds(
    rates: GroupedRates, sm_count: int, *, tokens: int, hidden: int, inter: int, top_k: int,
    experts: int, tensor: int = 1, expert: int = 1, skew: float = 1.0,
) -> float:  # fmt: skip
    """Estimate the seconds of gate, up and down products of the busiest device's experts.

    Args:
      rates: rates of the GPU.
      sm_count: streaming multiprocessors of the GPU.
      tokens: tokens of all devices that share the experts.
      hidden, inter: widths of the model and of one expert.
      top_k: experts per token.
      experts: experts of the layer.
      tensor: devices that split each expert's `inter`.
      expert: devices that split the experts.
      skew: rows of the busiest expert over the mean; 1 is balanced.
    """
    sizes = tokens, hidden, inter, top_k, experts, tensor, expert, skew
    return float(grouped_times(rates, sm_count, Groups(*_arrays(sizes)))[0])


def grouped_times(rates: GroupedRates, sm_count: int, of: Groups) -> np.ndarray:
    """Estimate the seconds [r] of many MLPs over experts, as `grouped_seconds` does."""
    inter, here = of.inter / of.tensor, of.experts / of.expert
    load = np.minimum(of.expert, 1 + (of.skew - 1) / here)  # its other experts have mean rows
    rows = of.tokens * of.top_k / of.expert * load
    active = here * -np.expm1(-rows / here)  # of experts that rows find at random
    computing = np.full_like(rows, np.inf)
    for height in _TILE_ROWS:
        tiles = active * np.maximum(1.0, rows / active / height + 0.5)
        seconds = np.zeros_like(rows)
        for columns, depth in ((2 * inter, of.hidden), (of.hidden, inter)):
            each = 2.0 * height * _TILE_COLUMNS * depth * sm_count / rates.flops_per_s
            each += rates.tile_s * height / 128
            seconds += np.maximum(1.0, tiles * np.ceil(columns / _TILE_COLUMNS) / sm_count) * each
        computing = np.minimum(computing, seconds)
    n_bytes = active * 3 * of.hidden * inter + rows * (of.hidden + 2 * inter)
    n_bytes += of.tokens * (of.hidden + rates.all_rows * of.top_k * (3 * inter + 2 * of.hidden))
    moving = _ITEM * n_bytes / rates.bytes_per_s
    return rates.start_s + rates.expert_s * active + beside(computing, moving, rates.overlap)


def dispatch_seconds(
    rates: RowExchangeRates, *, tokens: int, hidden: int, top_k: int, sms: int, nodes: int = 1,
    per_node: int = 8, item: float = DISPATCH_ITEM,
) -> float:  # fmt: skip
    """Estimate the seconds to send tokens to the devices that have their experts.

    Args:
      rates: rates of the direction.
      tokens: tokens of one device.
      hidden: width of the model.
      top_k: experts per token, on devices at random.
      sms: streaming multiprocessors that copy.
      nodes, per_node: nodes, and devices per node, that share the experts.
      item: bytes per element.
    """
    of = RowExchanges(*_arrays((tokens, hidden, top_k, sms, nodes, per_node)))
    return float(row_exchange_times(rates, of, item)[0])


def combine_seconds(
    rates: RowExchangeRates, *, tokens: int, hidden: int, top_k: int, sms: int, nodes: int = 1,
    per_node: int = 8, item: float = COMBINE_ITEM,
) -> float:  # fmt: skip
    """Estimate the seconds to bring results back; arguments as in `dispatch_seconds`."""
    return dispatch_seconds(
        rates, tokens=tokens, hidden=hidden, top_k=top_k, sms=sms, nodes=nodes, per_node=per_node,
        item=item,
    )  # fmt: skip


def row_exchange_times(rates: RowExchangeRates, of: RowExchanges, item: float) -> np.ndarray:
    """Estimate the seconds [r] of many exchanges of rows, as `dispatch_seconds` does."""
    row = of.hidden * item
    devices = _distinct(of.per_node, of.top_k)
    linked = of.tokens * devices * (1 - 1 / of.per_node) * row / rates.link_bytes_per_s
    copied = of.tokens * (devices * row / rates.sm_bytes_per_s + rates.token_s) / of.sms
    far = np.where(of.nodes > _FEW_NODES, rates.far_bytes_per_s, rates.network_bytes_per_s)
    sent = of.tokens * _distinct(of.nodes, of.top_k) * (1 - 1 / of.nodes) * row / far
    start = rates.start_s + rates.node_s * np.log2(of.nodes)
    return start + np.maximum(np.maximum(linked, copied), sent)


def power_law_skew(alpha: float, tokens: int, experts: int, top_k: int) -> float:
    """Return the rows of the busiest expert over the mean where loads follow a power law.

    Args:
      alpha: exponent of the density of loads, between 1 and 2; a load is between 1 row and 80 % of
        the tokens (or, with fewer rows than experts, between 0.01 and 2 rows).
      tokens, experts, top_k: as in `grouped_seconds`.
    """
    low, high = (1.0, max(1.5, 0.8 * tokens)) if tokens * top_k > experts else (0.01, 2.0)
    p = 1 - alpha
    # The largest of n draws is about the quantile n / (n + 1).
    most = ((high**p - low**p) * experts / (experts + 1) + low**p) ** (1 / p)
    mean = (high ** (p + 1) - low ** (p + 1)) / (p + 1) / ((high**p - low**p) / p)
    return min(max(1.0, most / mean), experts / top_k)


def _distinct(places: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return how many of some places are drawn at least once, on average."""
    return places * (1 - (1 - 1 / places) ** draws)


def _arrays(values: tuple[float, ...]) -> list[np.ndarray]:
    return [np.array([float(x)]) for x in values]
