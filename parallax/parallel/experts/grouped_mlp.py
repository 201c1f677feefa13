"""The grouped MLP: each row runs through its own expert, at a cost proportional to the rows.

Rows are sorted by expert, and each expert's rows run in tiles of equal size, in a loop over its
tiles. Data decide how many rows an expert gets, and nothing is computed for empty rows. Shapes: R
rows, of which some are empty; e experts on this device, D model width, F MLP width (this device's
share, if it is split).
"""
# ruff: noqa: N815 -- fields carry their shapes, as arrays do elsewhere.

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from parallax.kernels import dispatch
from parallax.kernels.ring_attention.reference import accumulator_dtype
from parallax.parallel.experts.dispatch import first_of_each
from parallax.parallel.gates import gated
from parallax.parallel.products import StoredWeight
from parallax.parallel.varying import vary_alike, vary_over, varying_axes

SCOPE = "expert_tiles"
# (rows, matrices, biases or None) -> their product
Times = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("up_eDF", "down_eFD", "gate_eDF", "up_bias_eF", "down_bias_eD", "gate_bias_eF"),
    meta_fields=("kind", "limit"),
)
@dataclass(frozen=True)
class ExpertWeights:
    """The weights of the experts on this device: gated MLPs with a gate, GELU without one.

    Attributes:
      up_eDF, gate_eDF: [e, D, F]; no gate is None. In a decoding step a packed one is a
        StoredWeight until `unpacked`.
      down_eFD: [e, F, D].
      up_bias_eF, gate_bias_eF: [e, F], or None.
      down_bias_eD: [e, D], or None. Where F is split over devices, all but one of them have zeros.
      kind, limit: of the gate, as `gates.gated` takes them.
    """

    up_eDF: Any
    down_eFD: Any
    gate_eDF: Any = None
    up_bias_eF: jax.Array | None = None
    down_bias_eD: jax.Array | None = None
    gate_bias_eF: jax.Array | None = None
    kind: str = "silu"
    limit: float = 0.0

    @property
    def experts(self) -> int:
        """The number of experts."""
        return jax.tree.leaves(self.up_eDF)[0].shape[0]

    def unpacked(self, keep: Callable[[StoredWeight], bool] | None = None) -> "ExpertWeights":
        """Return the weights, of the packed ones only those that `keep` selects still packed.

        None is for rows that run in tiles.
        """

        def read(w):
            if not isinstance(w, StoredWeight) or (keep is not None and keep(w)):
                return w
            if keep is None:
                reason = "it multiplies all rows of an expert at once, and these run in tiles"
                dispatch.record_refusal("packed_matmul", "mosaic", reason)
            return w.unpacked()

        up, down, gate = map(read, (self.up_eDF, self.down_eFD, self.gate_eDF))
        return dataclasses.replace(self, up_eDF=up, down_eFD=down, gate_eDF=gate)

    def hidden(self, up: jax.Array, gate: jax.Array | None) -> jax.Array:
        """Return the hidden activations, from products with their biases."""
        return jax.nn.gelu(up) if gate is None else gated(up, gate, self.kind, self.limit)

    def mlp(self, x: jax.Array, times: Times) -> jax.Array:
        """Run rows through the MLP of their experts, with `times` as the product."""
        gate = None
        if self.gate_eDF is not None:
            gate = times(x, self.gate_eDF, self.gate_bias_eF)
        hidden = self.hidden(times(x, self.up_eDF, self.up_bias_eF), gate)
        return times(hidden, self.down_eFD, self.down_bias_eD)

    def of(self, ids_R: jax.Array) -> "ExpertWeights":
        """Return the weights of these experts, one after another."""
        return jax.tree.map(lambda w: jnp.take(w, ids_R, axis=0, mode="clip"), self)


def grouped_mlp(
    x_RD: Float[Array, "r d"],
    expert_R: Int[Array, "r"],
    weights: ExpertWeights,
    *,
    tile: int,
    sink: ExpertWeights | None = None,
) -> tuple[Float[Array, "r d"], jax.Array]:
    """Run rows through the MLPs of their experts.

    Args:
      x_RD: [R, D].
      expert_R: [R] int32, the expert on this device (0 to e - 1) of each row; any other value marks
        an empty row, whose result is 0.
      weights: the weights of this device's experts. They may be replicated over mesh axes that
        `x_RD` varies over: their gradient is then summed over these.
      tile: rows of one expert that are multiplied at once, at most R.
      sink: the result of `gradient_sink` for these weights, if several calls share them.

    Returns:
      ([R, D] in x's dtype, rows executed in whole tiles, int32). If F is split, the first is a
      partial sum.

    Raises:
      ValueError: shapes that do not match.

    Cost: 4 D F FLOPs per executed row (6 D F gated) forward and 3 times that backward, which
      recomputes hidden activations. Gradients of weights add up in float32 or wider.
      Differentiable once in reverse mode.

    Reference: rows sorted by expert and padded to blocks as in Gale et al., "MegaBlocks", 2022.
    """
    _check_shapes(x_RD, expert_R, weights, tile)
    if sink is None:
        weights, sink = gradient_sink(weights)
    tile = max(1, min(tile, x_RD.shape[0]))
    leaves, tree = jax.tree.flatten((x_RD, expert_R, weights, sink))
    return _grouped_mlp(tile, *jax.tree.unflatten(tree, vary_alike(*leaves)))


@jax.custom_vjp
def gradient_sink(weights: ExpertWeights) -> tuple[ExpertWeights, ExpertWeights]:
    """Return (weights for `grouped_mlp`, zeros in float32 or wider that take their gradient).

    Calls in a loop would otherwise add up gradients in the weights' own dtype.
    """
    return weights, jax.tree.map(_wide_zeros, weights)


gradient_sink.defvjp(
    lambda weights: (gradient_sink(weights), None),
    # In `grouped_mlp` only the sink has a gradient; other uses may add one to the weights.
    lambda _, grads: (jax.tree.map(lambda own, total: own + total.astype(own.dtype), *grads),),
)


def _wide_zeros(x):
    return vary_over(jnp.zeros(x.shape, accumulator_dtype(x.dtype)), varying_axes(x))


class _Tiles(NamedTuple):
    """The rows sorted by expert in `order` (padded by a tile): count_e[j] rows for expert j."""

    order: jax.Array
    first_e: jax.Array
    count_e: jax.Array


def _sort(expert_R, experts: int, tile: int) -> _Tiles:
    here = jnp.logical_and(expert_R >= 0, expert_R < experts)
    key = jnp.where(here, expert_R, experts).astype(jnp.int32)
    order = jnp.argsort(key, stable=True).astype(jnp.int32)
    first = first_of_each(key, experts)
    return _Tiles(jnp.pad(order, (0, tile)), first[:-1], first[1:] - first[:-1])


def _over_tiles(tiles: _Tiles, tile: int, per_expert, visit, state, accumulator):
    """Fold `visit(state, accumulator, weights, rows)` over the tiles, expert by expert.

    Args:
      tiles: the sorted rows.
      tile: rows per tile.
      per_expert: tree of [e, ...]; `visit` gets one expert's slice.
      state: the value carried through all tiles.
      accumulator: one expert's slice of `per_expert` -> the value carried through its tiles.

    Returns:
      (state, [e, ...] of each expert's accumulator).
    """
    num_rows = tiles.order.shape[0] - tile
    within = jnp.arange(tile, dtype=jnp.int32)

    def expert(state, inputs):
        mine, first, count = inputs

        def body(carry):
            start, state, total = carry
            rows = lax.dynamic_slice(tiles.order, (first + start,), (tile,))
            # After the expert's last row: distinct indices out of range, never read or written.
            rows = jnp.where(start + within < count, rows, num_rows + within)
            state, total = visit(state, total, mine, rows)
            return start + tile, state, total

        start = count * 0
        with jax.named_scope(SCOPE):
            _, state, total = lax.while_loop(
                lambda carry: carry[0] < count, body, (start, state, accumulator(mine))
            )
        return state, total

    return lax.scan(expert, state, (per_expert, tiles.first_e, tiles.count_e))


def _take(x_RD, rows):
    return x_RD.at[rows].get(mode="fill", fill_value=0, unique_indices=True)


def _put(y_RD, rows, values):
    return y_RD.at[rows].set(values, mode="drop", unique_indices=True)


def _inner(x_rD, mine: ExpertWeights):
    """Return the two products that the hidden activations are made of; no gate is None."""
    return (
        _plus(x_rD @ mine.up_eDF, mine.up_bias_eF),
        None if mine.gate_eDF is None else _plus(x_rD @ mine.gate_eDF, mine.gate_bias_eF),
    )


def _plus(y_r, bias):
    return y_r if bias is None else y_r + bias[None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped_mlp(tile, x_RD, expert_R, weights, sink):
    return _forward(tile, x_RD, expert_R, weights, sink)[0]


def _forward(tile, x_RD, expert_R, weights, sink):
    tiles = _sort(expert_R, weights.up_eDF.shape[0], tile)

    def visit(y_RD, _, mine, rows):
        hidden = mine.hidden(*_inner(_take(x_RD, rows), mine))
        return _put(y_RD, rows, _plus(hidden @ mine.down_eFD, mine.down_bias_eD)), ()

    y_RD, _ = _over_tiles(
        tiles, tile, weights, visit, vary_over(jnp.zeros_like(x_RD), varying_axes(x_RD)),
        lambda mine: (),
    )  # fmt: skip
    executed = (-(-tiles.count_e // tile) * tile).sum(dtype=jnp.int32)
    return (y_RD, executed), (x_RD, tiles, weights)


def _backward(tile, saved, grads):
    x_RD, tiles, weights = saved
    dy_RD, _ = grads

    def visit(dx_RD, total, mine, rows):
        x, dy = _take(x_RD, rows), _take(dy_RD, rows)
        hidden, vjp = jax.vjp(mine.hidden, *_inner(x, mine))
        d_up, d_gate = vjp(dy @ mine.down_eFD.T)

        def add(sum_so_far, a, b):
            return sum_so_far + jnp.matmul(a.T, b, preferred_element_type=sum_so_far.dtype)

        def add_bias(sum_so_far, b):
            return None if sum_so_far is None else sum_so_far + b.sum(0, dtype=sum_so_far.dtype)

        dx, gate_sum, gate_bias_sum = d_up @ mine.up_eDF.T, None, None
        if mine.gate_eDF is not None:
            dx = dx + d_gate @ mine.gate_eDF.T
            gate_sum = add(total.gate_eDF, x, d_gate)
            gate_bias_sum = add_bias(total.gate_bias_eF, d_gate)
        total = dataclasses.replace(
            total,
            up_eDF=add(total.up_eDF, x, d_up),
            down_eFD=add(total.down_eFD, hidden, dy),
            gate_eDF=gate_sum,
            up_bias_eF=add_bias(total.up_bias_eF, d_up),
            down_bias_eD=add_bias(total.down_bias_eD, dy),
            gate_bias_eF=gate_bias_sum,
        )
        return _put(dx_RD, rows, dx), total

    dx_RD, d_weights = _over_tiles(
        tiles, tile, weights, visit, vary_over(jnp.zeros_like(x_RD), varying_axes(x_RD)),
        lambda mine: jax.tree.map(_wide_zeros, mine),
    )  # fmt: skip
    return dx_RD, None, None, d_weights


_grouped_mlp.defvjp(_forward, _backward)


def _check_shapes(x_RD, expert_R, weights: ExpertWeights, tile: int) -> None:
    e, d, f = weights.up_eDF.shape
    gate = weights.gate_eDF
    if weights.down_eFD.shape != (e, f, d) or (gate is not None and gate.shape != (e, d, f)):
        raise ValueError(
            f"grouped_mlp: expected up [e, D, F], down [e, F, D] and gate [e, D, F] or None; got "
            f"{(e, d, f)}, {weights.down_eFD.shape} and {None if gate is None else gate.shape}."
        )
    for name, size in (("up_bias_eF", f), ("gate_bias_eF", f), ("down_bias_eD", d)):
        bias = getattr(weights, name)
        if bias is not None and bias.shape != (e, size):
            raise ValueError(
                f"grouped_mlp: expected {name} {(e, size)} beside up {(e, d, f)}, got {bias.shape}."
            )
    if x_RD.shape != (expert_R.shape[0], d):
        raise ValueError(
            f"grouped_mlp: expected x [R, D] with an expert for each of R rows and D = {d} as in "
            f"the weights; got x {x_RD.shape} and experts {expert_R.shape}."
        )
    if tile < 1:
        raise ValueError(f"grouped_mlp: a tile of {tile} rows. Use 1 or more, for example 512.")
