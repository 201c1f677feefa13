"""The experts of a decoding step, whose few rows are multiplied in one product per matrix.

A step is bound by the weights that it reads. A loop over experts picks each one's matrices at an
index, which XLA copies; one batched product of all experts reads a layer's in place. Shapes: T
tokens, k choices per token, R rows; e experts on this device, D model width, F MLP width (this
device's share, if it is split); W experts whose weights are multiplied.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from parallax.parallel.experts.grouped_mlp import ExpertWeights
from parallax.parallel.products import kernel_matrix, product

# How experts run: in a loop over tiles of rows, all in one product, or only those that are chosen.
Form = Literal["tiles", "every", "chosen"]
# The weights of a chosen expert are read, written and read again.
PICKED_PASSES = 3


def are_few(tokens: int, tile: int, senders: int = 1) -> bool:
    """Return whether no expert can have more rows than one tile.

    One product of all experts then has no more FLOPs than a tile of each.

    Args:
      tokens: T, tokens of each device that sends rows here.
      tile: rows of one expert that are multiplied at once, in tiles.
      senders: devices that send rows here; of one, they stay.
    """
    return tokens * senders <= tile


def form_of_few(tokens: int, top_k: int, here: int) -> Form:
    """Return the form that reads fewest bytes of weights, where tokens stay on their device.

    Args:
      tokens, top_k, here: T, k and e.
    """
    return "chosen" if PICKED_PASSES * tokens * top_k <= here else "every"


def experts_of_few(
    x_TD: Float[Array, "t d"], ids_Tk: Int[Array, "t k"], gates_Tk: jax.Array,
    weights: ExpertWeights, form: Form,
) -> Float[Array, "t d"]:  # fmt: skip
    """Run experts on all tokens, and sum the outputs of those that a token chooses.

    Args:
      x_TD: the tokens.
      ids_Tk: the choices, 0 to e - 1 on this device; others are elsewhere.
      gates_Tk: their factors, float32 or wider.
      weights: the weights of this device's experts.
      form: "every" runs each expert, "chosen" the T k choices.

    Returns:
      [T, D] in x's dtype; a partial sum if F is split or experts are elsewhere.

    Cost: "every" reads every weight once, and "chosen" those of T k experts, which it writes and
      reads again, also where a choice is elsewhere or another token's too. 4 D F FLOPs per token
      and expert that runs (6 D F gated). Packed weights stay packed where the kernel
      `packed_matmul` runs, and are unpacked before elsewhere.
    """
    tokens, top_k = ids_Tk.shape
    experts = weights.experts
    if form == "chosen":
        weights = weights.unpacked(lambda w: kernel_matrix(x_TD, w) is not None)
        here_Tk = jnp.logical_and(ids_Tk >= 0, ids_Tk < experts)
        weights = weights.of(jnp.where(here_Tk, ids_Tk, 0).reshape(-1))
        owner_W = jnp.repeat(jnp.arange(tokens, dtype=jnp.int32), top_k)
        own_WT = owner_W[:, None] == jnp.arange(tokens, dtype=jnp.int32)[None]
        chosen_WT = jnp.logical_and(own_WT, here_Tk.reshape(-1, 1))
        gates_WT = jnp.where(chosen_WT, gates_Tk.reshape(-1, 1), 0)
    else:
        chosen_WTk = ids_Tk[None] == jnp.arange(experts, dtype=jnp.int32)[:, None, None]
        chosen_WT = chosen_WTk.any(2)
        gates_WT = jnp.where(chosen_WTk, gates_Tk[None], 0).sum(2)
    x_WTD = jnp.broadcast_to(x_TD[None], (len(chosen_WT), *x_TD.shape))
    y_WTD = weights.mlp(x_WTD, _batched).astype(gates_WT.dtype)
    y_WTD = jnp.where(chosen_WT[:, :, None], y_WTD, 0)  # not a number times 0 is not 0
    return (gates_WT[:, :, None] * y_WTD).sum(0).astype(x_TD.dtype)


def rows_of_few(
    x_RD: Float[Array, "r d"], expert_R: Int[Array, "r"], weights: ExpertWeights, most: int
) -> Float[Array, "r d"]:
    """Run rows through the MLPs of their experts, as `grouped_mlp` does, in one product per matrix.

    Args:
      x_RD, expert_R, weights: as of `grouped_mlp`.
      most: rows that an expert may have at most.

    Cost: every weight is read once; 4 D F FLOPs (6 D F gated) per expert and `most` rows.
    """
    experts, rows = weights.experts, x_RD.shape[0]
    numbers = jnp.arange(rows, dtype=jnp.int32)
    is_same_RR = expert_R[:, None] == expert_R[None]
    rank_R = (is_same_RR & (numbers[None] < numbers[:, None])).sum(1, dtype=jnp.int32)
    is_here_R = jnp.logical_and(expert_R >= 0, expert_R < experts)
    place_R = jnp.where(is_here_R, expert_R * most + rank_R, experts * most)
    row_P = jnp.full(experts * most, rows, jnp.int32).at[place_R].set(numbers, mode="drop")
    x_PD = x_RD.at[row_P].get(mode="fill", fill_value=0)
    y_PD = weights.mlp(x_PD.reshape(experts, most, -1), _batched).reshape(x_PD.shape)
    return y_PD.at[place_R].get(mode="fill", fill_value=0)


def _batched(x_WRn: jax.Array, w_Wnm: Any, bias_Wm: jax.Array | None) -> jax.Array:
    """Multiply every expert's rows by its matrix, and add its bias: [W, R, m]."""
    # With anything fused to it, a product cannot read its weight in the stack of layers; and of
    # rows that all experts share, XLA would make one wide product, whose weights it transposes.
    x_WRn = lax.optimization_barrier(x_WRn)
    y_WRm = lax.optimization_barrier(product(x_WRn, w_Wnm, "wrn,wnm->wrm"))
    return y_WRm if bias_Wm is None else y_WRm + bias_Wm[:, None]
