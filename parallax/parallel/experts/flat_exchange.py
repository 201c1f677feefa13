"""The exchange of tokens with their experts' devices in one step, over any mesh axes.

Shapes: T tokens on this device in n chunks of t, k choices, D width; P devices with e experts each,
C places per device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.bounds import Role, Transfer, transfer
from parallax.parallel.experts.chunks import ExpertShape, chunk_tokens, cut, devices_of, join
from parallax.parallel.experts.dispatch import (
    capacity,
    combine,
    experts_of_rows,
    offsets,
    pack,
)
from parallax.parallel.experts.exchange import CompiledAs, Rows, exchange_blocks
from parallax.parallel.experts.few_rows import rows_of_few
from parallax.parallel.experts.grouped_mlp import ExpertWeights, gradient_sink, grouped_mlp
from parallax.parallel.experts.pipeline import Stage, exchanges, pipelined
from parallax.parallel.experts.routing import Routing


class Setting(NamedTuple):
    """The settings of an exchange: mesh axes, compiled kind, capacity factor, chunks and tile.

    Rows run in tiles, or where there are `few`, all in one product per matrix.
    """

    axes: tuple[str, ...]
    compiled: CompiledAs
    capacity_factor: float | None
    chunks: int
    tile: int
    few: bool = False


def flat_exchange(
    setting: Setting, x_TD: jax.Array, routing: Routing, weights: ExpertWeights, num_experts: int
) -> tuple[jax.Array, jax.Array]:
    """Return (experts' outputs for this device's tokens [T, D], choices dropped).

    All arrays with gradients must be typed as varying over the same mesh axes.
    """
    devices = lax.axis_size(setting.axes)
    tokens, top_k = routing.ids_Tk.shape
    n, each = chunk_tokens(tokens, setting.chunks)
    places = capacity(each, top_k, num_experts, devices, setting.capacity_factor)
    x_ntD, gates_ntk = cut(x_TD, n, each), cut(routing.gates_Tk, n, each)
    ids_ntk = cut(routing.ids_Tk, n, each, fill=-1)
    to = jax.vmap(lambda ids: offsets(ids, num_experts, devices, places))(ids_ntk)
    with jax.named_scope("expert_counts"):
        arriving_nPe = exchange_blocks(to.rows_Pe, setting.axes)
    sent_nP, received_nP = to.rows_Pe.sum(axis=2), arriving_nPe.sum(axis=2)
    sent_nP, received_nP = (x.astype(jnp.int32) for x in (sent_nP, received_nP))
    frozen, sink = (weights, weights) if setting.few else gradient_sink(weights)

    def dispatch(_, chunk):
        x_tD, to, sent, received = chunk
        with jax.named_scope("dispatch"):
            return Rows(pack(x_tD, to), sent, received)

    def experts(rows_PCD, arriving_Pe):
        if setting.few:
            return run_few(rows_PCD, arriving_Pe, weights, each * devices)
        return run_experts(rows_PCD, arriving_Pe, frozen, sink, setting.tile)

    def home(rows_PCD, chunk):
        _, _, sent, received = chunk
        return Rows(rows_PCD, received, sent)

    def gather(rows_PCD, chunk):
        gates_tk, to, _, _ = chunk
        with jax.named_scope("combine"):
            return combine(rows_PCD, gates_tk, to)

    y_ntD = pipelined(
        [
            Stage((x_ntD, to, sent_nP, received_nP), before=dispatch, sends=True),
            Stage(arriving_nPe, beside=experts),
            Stage((gates_ntk, to, sent_nP, received_nP), before=home, after=gather, sends=True),
        ],
        n,
        setting.axes,
        setting.compiled,
    )
    return join(y_ntD, tokens), to.dropped.sum(dtype=jnp.int32)


def run_experts(
    rows_PCD: jax.Array,
    arriving_Pe: jax.Array,
    weights: ExpertWeights,
    sink: ExpertWeights,
    tile: int,
) -> jax.Array:
    """Run rows received from each device through this device's experts, [P, C, D]."""
    expert_PC = experts_of_rows(arriving_Pe, rows_PCD.shape[1])
    flat = rows_PCD.reshape(-1, rows_PCD.shape[-1])
    y, _ = grouped_mlp(flat, expert_PC.reshape(-1), weights, tile=tile, sink=sink)
    return y.reshape(rows_PCD.shape)


def run_few(
    rows_PCD: jax.Array, arriving_Pe: jax.Array, weights: ExpertWeights, most: int
) -> jax.Array:
    """Run rows as `run_experts` does, of which no expert has more than `most`, by `rows_of_few`."""
    expert_PC = experts_of_rows(arriving_Pe, rows_PCD.shape[1])
    flat = rows_PCD.reshape(-1, rows_PCD.shape[-1])
    return rows_of_few(flat, expert_PC.reshape(-1), weights, most).reshape(rows_PCD.shape)


def flat_transfers(setting: Setting, shape: ExpertShape, sizes, calls: int) -> tuple[Transfer, ...]:
    """Return the closed form of what `calls` forward calls send, in the order of sending."""
    devices = devices_of(setting.axes, sizes)
    n, each = chunk_tokens(shape.tokens, setting.chunks)
    places = capacity(each, shape.top_k, shape.num_experts, devices, setting.capacity_factor)
    per_row, both_ways = shape.width * shape.item_bytes, 2 * calls
    counts = n * shape.num_experts * 4
    return (
        transfer("expert_choices", "rows for each expert", "all-to-all", setting.axes, devices,
                 counts, calls, 0),
        row_transfer(
            "expert_rows", "tokens to their experts and outputs home", setting, setting.axes,
            devices,
            buffers=n * devices * places.rows * per_row * both_ways,
            needed=shape.tokens * shape.top_k * per_row * both_ways,
            count=exchanges(n, 0, 2) * calls,
        ),
    )  # fmt: skip


def row_transfer(
    role: Role,
    what: str,
    setting: Setting,
    axes: tuple[str, ...],
    devices: int,
    *,
    buffers: float,
    needed: float,
    count: int,
) -> Transfer:
    """Return the Transfer of exchanges of rows: whole buffers, or if ragged, the rows in use.

    Args:
      role, what, axes: as in `Transfer`.
      setting: the settings of the exchange.
      devices: devices in the exchange.
      buffers: bytes of all buffers, the part for this device included.
      needed: bytes of the rows in use under uniform routing, this device's own included.
      count: number of collectives.
    """
    minimum = transfer(role, what, "all-to-all", axes, devices, needed, 1).wire_bytes
    if setting.compiled == "ragged":
        return Transfer(role, what, "ragged-all-to-all", axes, minimum, count, minimum)
    sent = transfer(role, what, "all-to-all", axes, devices, buffers, 1).wire_bytes
    return Transfer(role, what, "all-to-all", axes, sent, count, minimum)
