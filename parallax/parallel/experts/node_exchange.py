"""The exchange of tokens with their experts in two steps, so that a token enters a node once.

Step 1 sends a token, with its choices and gates in that node, to the device of its own rank in each
node that holds any of its experts. That relay sends a row for each choice to the expert's device
(step 2), sums the gated outputs of its node, and sends one row per token home. Shapes: T tokens on
this device in n chunks of t, k choices, D width, N nodes of R devices with e experts each; B places
per node, so N B tokens may arrive at a relay; C places per device of the node.
"""
# ruff: noqa: N815 -- fields carry their shapes, as arrays do elsewhere.

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parallax.bounds import Role, Transfer, transfer
from parallax.kernels.ring_attention.reference import accumulator_dtype
from parallax.parallel.experts.chunks import (
    ExpertShape,
    chunk_tokens,
    cut,
    join,
    node_capacity,
    relay_capacity,
    share_of_node,
)
from parallax.parallel.experts.dispatch import Offsets, combine, offsets, pack, unpack
from parallax.parallel.experts.exchange import Rows, exchange_blocks, exchange_rows
from parallax.parallel.experts.flat_exchange import Setting, row_transfer, run_experts, run_few
from parallax.parallel.experts.grouped_mlp import ExpertWeights, gradient_sink
from parallax.parallel.experts.pipeline import Stage, exchanges, pipelined
from parallax.parallel.experts.routing import Routing


class NodeStep(NamedTuple):
    """The nodes that the tokens of one chunk go to.

    Attributes:
      to: places of tokens, with nodes as choices.
      ids_NBk: int32, choices in that node, counted from its first expert; -1 is none.
      gates_NBk: gates of these choices.
      dropped: choices of tokens without a place.
    """

    to: Offsets
    ids_NBk: jax.Array
    gates_NBk: jax.Array
    dropped: jax.Array


def node_step(ids_tk, gates_tk, num_experts: int, nodes: int, factor: float | None) -> NodeStep:
    """Return the first step of one chunk: each token goes once to every node that it needs."""
    tokens, top_k = ids_tk.shape
    here = num_experts // nodes
    node_N = jnp.arange(nodes, dtype=jnp.int32)
    node_tk = jnp.where(ids_tk >= 0, ids_tk // here, -1)
    choices_tN = (node_tk[:, :, None] == node_N[None, None, :]).sum(axis=1, dtype=jnp.int32)
    needed_tN = jnp.where(choices_tN > 0, node_N[None, :], -1)
    places = node_capacity(tokens, top_k, num_experts, nodes, factor)
    to = offsets(needed_tN, nodes, nodes, places)
    lost_tN = jnp.where(to.place_Tk == nodes * places.rows, choices_tN, 0)
    ids_NBk = pack(ids_tk, to) - (node_N * here)[:, None, None]
    mine = jnp.logical_and(ids_NBk >= 0, ids_NBk < here)
    mine = jnp.logical_and(mine, (to.choice_PC >= 0)[:, :, None])
    return NodeStep(
        to, jnp.where(mine, ids_NBk, -1), pack(gates_tk, to), lost_tN.sum(dtype=jnp.int32)
    )


def node_exchange(
    setting: Setting, x_TD: jax.Array, routing: Routing, weights: ExpertWeights, num_experts: int
) -> tuple[jax.Array, jax.Array]:
    """Return (experts' outputs for this device's tokens [T, D], choices dropped on this device).

    All arrays with gradients must be typed as varying over the same mesh axes.
    """
    node, inner = setting.axes[:1], setting.axes[1:]
    nodes, ranks = lax.axis_size(node), lax.axis_size(inner)
    tokens, top_k = routing.ids_Tk.shape
    n, each = chunk_tokens(tokens, setting.chunks)
    factor = setting.capacity_factor
    x_ntD, gates_ntk = cut(x_TD, n, each), cut(routing.gates_Tk, n, each)
    ids_ntk = cut(routing.ids_Tk, n, each, fill=-1)
    step = jax.vmap(lambda ids, gates: node_step(ids, gates, num_experts, nodes, factor))(
        ids_ntk, gates_ntk
    )
    # Choices and gates are small and travel for all chunks at once, before the rows, so that every
    # count is known.
    with jax.named_scope("expert_counts"):
        ids_nNBk = exchange_blocks(step.ids_NBk, node)
        gates_nNBk = exchange_blocks(step.gates_NBk, node)
    from_nodes_nN = (ids_nNBk >= 0).any(axis=3).sum(axis=2, dtype=jnp.int32)
    to_nodes_nN = step.to.rows_Pe[:, :, 0]
    places = relay_capacity(each, top_k, num_experts, nodes, ranks, factor)
    gates_nMk = gates_nNBk.reshape(n, -1, top_k)  # M = N B tokens at a relay
    to = jax.vmap(lambda ids: offsets(ids, num_experts // nodes, ranks, places))(
        ids_nNBk.reshape(n, -1, top_k)
    )
    with jax.named_scope("expert_counts"):
        arriving_nRe = exchange_blocks(to.rows_Pe, inner)
    # Small exchanges finish before the first tick, so that none takes the slot beside the experts.
    to, gates_nMk, arriving_nRe = lax.optimization_barrier((to, gates_nMk, arriving_nRe))
    sent_nR = to.rows_Pe.sum(axis=2, dtype=jnp.int32)
    received_nR = arriving_nRe.sum(axis=2, dtype=jnp.int32)
    frozen, sink = (weights, weights) if setting.few else gradient_sink(weights)

    def to_nodes(_, chunk):
        x_tD, to, sent, received = chunk
        with jax.named_scope("dispatch_node"):
            return Rows(pack(x_tD, to), sent, received)

    def relay(rows_NBD, _):
        return rows_NBD.reshape(-1, rows_NBD.shape[-1])

    def inside(rows, sent, received):
        parcel = Rows(rows, sent, received)
        return exchange_rows([parcel], axes=inner, compiled=setting.compiled)[0]

    # Links between nodes are slow: in programs that run one collective at a time, it is their
    # exchange that overlaps with the experts. Exchanges inside nodes run before and after.
    def dispatch(rows_MD, chunk):
        _, to, sent, received, _ = chunk
        with jax.named_scope("dispatch"):
            return inside(pack(rows_MD, to), sent, received)

    def experts(rows_RCD, chunk):
        if setting.few:
            return run_few(rows_RCD, chunk[-1], weights, each * nodes * ranks)
        return run_experts(rows_RCD, chunk[-1], frozen, sink, setting.tile)

    def to_relay(rows_RCD, chunk):
        gates_Mk, to, sent, received, _ = chunk
        with jax.named_scope("combine"):
            return combine(inside(rows_RCD, received, sent), gates_Mk, to)

    def home(rows_MD, chunk):
        _, sent, received = chunk
        return Rows(rows_MD.reshape(nodes, -1, rows_MD.shape[-1]), received, sent)

    def gather(rows_NBD, chunk):
        with jax.named_scope("combine_node"):
            rows_tND = unpack(rows_NBD, chunk[0])
            return rows_tND.sum(axis=1, dtype=accumulator_dtype(rows_tND.dtype)).astype(
                rows_tND.dtype
            )

    y_ntD = pipelined(
        [
            Stage(
                (x_ntD, step.to, to_nodes_nN, from_nodes_nN),
                before=to_nodes,
                after=relay,
                sends=True,
            ),
            Stage(
                (gates_nMk, to, sent_nR, received_nR, arriving_nRe),
                before=dispatch,
                beside=experts,
                after=to_relay,
            ),
            Stage((step.to, to_nodes_nN, from_nodes_nN), before=home, after=gather, sends=True),
        ],
        n,
        node,
        setting.compiled,
    )
    dropped = step.dropped.sum(dtype=jnp.int32) + to.dropped.sum(dtype=jnp.int32)
    return join(y_ntD, tokens), dropped


def node_transfers(setting: Setting, shape: ExpertShape, sizes, calls: int) -> tuple[Transfer, ...]:
    """Return the closed form of what `calls` forward calls send.

    The minimum between nodes is one row per token and needed other node, each way.
    """
    node, inner = setting.axes[:1], setting.axes[1:]
    nodes, ranks = sizes[node[0]], sizes[inner[0]]
    tokens, k, experts = shape.tokens, shape.top_k, shape.num_experts
    n, each = chunk_tokens(tokens, setting.chunks)
    first = node_capacity(each, k, experts, nodes, setting.capacity_factor)
    second = relay_capacity(each, k, experts, nodes, ranks, setting.capacity_factor)
    per_row = shape.width * shape.item_bytes * calls
    arrived = nodes * first.rows
    between = tokens * nodes * share_of_node(experts, nodes, k)
    small: tuple[tuple[Role, str, tuple[str, ...], int, int], ...] = (
        ("expert_choices", "choices to other nodes", node, nodes, n * arrived * k * 4),
        ("expert_gates", "gates to other nodes", node, nodes, n * arrived * k * shape.gate_bytes),
        ("expert_choices", "rows for each expert", inner, ranks, n * experts // nodes * 4),
    )
    rows: tuple[tuple[Role, str, tuple[str, ...], int, int, float, int], ...] = (
        ("node_rows", "tokens to other nodes and sums home", node, nodes,
         n * arrived, between, exchanges(n, 0, 2)),
        ("expert_rows", "tokens to their experts and outputs to the relay", inner, ranks,
         n * ranks * second.rows, tokens * k, 2 * n),
    )  # fmt: skip
    return (
        *(
            transfer(role, what, "all-to-all", axes, size, payload, calls, 0)
            for role, what, axes, size, payload in small
        ),
        *(
            row_transfer(
                role, what, setting, axes, size,
                buffers=2 * places * per_row, needed=2 * needed * per_row, count=count * calls,
            )
            for role, what, axes, size, places, needed, count in rows
        ),
    )  # fmt: skip
