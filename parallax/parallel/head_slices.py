"""The split of each head's width over a mesh axis: the second level of two-level attention.

Q K^T of a slice is a partial score. `HeadSlices` describes the four ways to continue from there.
Shapes: B batch, L tokens, H query heads, G key/value heads, K head_dim; m slices per head.
"""

import contextlib
import dataclasses
import functools
from dataclasses import dataclass
from typing import Literal, get_args

from jax import lax

from parallax.bounds import Role, transfer
from parallax.meshes.cluster import DEFAULT_CLUSTER
from parallax.parallel.attention_part import (
    AttentionPart,
    AttentionShape,
    KvLayout,
    Local,
    size_over,
    sizes_here,
)
from parallax.parallel.cheapest import seconds
from parallax.parallel.head_exchange import WIDTH, SliceExchange, heads_of
from parallax.parallel.order import to_order, undo_order
from parallax.parallel.pairs import block_of_pairs, scores_of_pairs
from parallax.parallel.ring_attention import query_shard_attention

Exact = Literal["exchange", "scores", "gather"]
Reduction = Literal["auto", "exchange", "scores", "gather", "local"]


@dataclass(frozen=True)
class HeadSlices:
    """The attention part for heads whose width is split over the devices on `axis`.

    Attributes:
      axis: mesh axis of the slices.
      reduction: how attention is computed from slices. Exact:
        "exchange": all-to-alls exchange slices of all heads for some whole heads, and back; if
          there are fewer heads than devices, for query shards of a head with all its keys.
        "scores": partial scores are summed block by block, forward and again backward.
        "gather": queries and keys are all-gathered, values stay slices; every device computes all
          scores.
        "auto": the cheapest of these by closed forms at the cluster's rates (`resolve`).
        An approximation: "local" treats every slice as a head of its own.
        Latent attention has one key for all heads, so it has "auto" only: heads are dealt out over
        `axis` instead of slices of them, and the inner part attends.
      inner: how attention crosses the other mesh axes.
      cluster: the cluster whose rates decide "auto".

    Raises:
      ValueError: an unknown reduction, or an inner part that splits head_dim as well.

    Cost: see `transfers`; for T tokens and widths in elements, a device sends in a forward pass
      exchange (m - 1) / m T (2 H K / m + 2 m G' K / m), where a destination reads G' heads;
      gather (m - 1) / m T (H + G) K; scores 2 (m - 1) / m H L L in float32 (about half if causal).
    Reference: paper `two_level`.
    """

    axis: str
    reduction: Reduction = "auto"
    inner: AttentionPart = Local()
    cluster: str = DEFAULT_CLUSTER

    def __post_init__(self):
        if self.reduction not in get_args(Reduction):
            raise ValueError(
                f"HeadSlices: reduction must be one of {', '.join(get_args(Reduction))}; got "
                f"{self.reduction!r}."
            )
        if self.inner.slice_axes:
            raise ValueError(
                f"HeadSlices: inner={self.inner} splits head_dim too, over "
                f"{self.inner.slice_axes}. Use one mesh axis for all slices."
            )

    @property
    def seq_axes(self) -> tuple[str, ...]:
        return self.inner.seq_axes

    @property
    def slice_axes(self) -> tuple[str, ...]:
        return (self.axis,)

    @property
    def approximation(self) -> str:
        if self.reduction != "local":
            return self.inner.approximation
        return "each slice of a head attends on its own, with its own scale and softmax"

    @property
    def keys_travel(self) -> bool:
        return self.inner.keys_travel

    def positions(self, index, local_length, sizes):
        return self.inner.positions(index, local_length, sizes)

    def resolve(self, shape: AttentionShape, sizes) -> str:
        """Return the reduction that runs: for "auto", the cheapest exact one, the first of equals.

        It is "heads" if whole heads are dealt out, and there is nothing to reduce.

        Raises:
          ValueError: no exact reduction can run.
        """
        if shape.whole_heads:
            if self.reduction == "auto":
                return "heads"
            raise ValueError(
                f"HeadSlices('{self.axis}'): reduction='{self.reduction}' needs slices of heads, "
                "but latent attention has one key for all heads, so that whole heads are dealt out "
                f"over '{self.axis}' and nothing is reduced. Use reduction='auto'."
            )
        if self.reduction != "auto":
            return self.reduction
        return _cheapest(self, shape, tuple(sizes.items()))

    def attend(
        self, q, k, v, *, scoring, segment_ids, sinks=None, partial_over=None, value_dim=None,
        whole_heads=False,
    ):  # fmt: skip
        if partial_over is not None:
            raise ValueError(
                f"HeadSlices('{self.axis}'): head_dim is already split over '{partial_over}'."
            )
        sizes = sizes_here()
        shape = AttentionShape(
            batch=q.shape[0],
            seq_len=q.shape[1] * size_over(sizes, self.seq_axes),
            heads=q.shape[2],
            kv_heads=k.shape[2],
            head_dim=q.shape[3] * (1 if whole_heads else sizes[self.axis]),
            item_bytes=q.dtype.itemsize,
            packed=segment_ids is not None,
            scoring=scoring,
            whole_heads=whole_heads,
        )
        reduction = self.resolve(shape, sizes)
        rest = {"scoring": scoring, "segment_ids": segment_ids, "sinks": sinks}
        if reduction == "heads":
            return self.inner.attend(q, k, v, **rest, value_dim=value_dim)
        if reduction == "local":
            return self.inner.attend(q, k, v, **rest)
        if reduction == "scores":
            return self.inner.attend(q, k, v, **rest, partial_over=self.axis)
        if reduction == "gather":
            q, k = (lax.all_gather(x, self.axis, axis=WIDTH, tiled=True) for x in (q, k))
            return self.inner.attend(q, k, v, **rest)
        to = self._exchange(shape, sizes)
        part = lax.axis_index(self.axis) // to.shards
        rest["sinks"] = sinks = heads_of(sinks, part, to.parts)
        if to.shards == 1:
            out = self.inner.attend(*to.enter(q, k, v, self.axis), **rest)
            return to.leave(out, self.axis)
        order = "zigzag" if scoring.is_causal else "natural"
        q, k, v = (to_order(x, to.shards, order) for x in (q, k, v))
        if segment_ids is not None:
            segment_ids = to_order(segment_ids, to.shards, order)
        out = query_shard_attention(
            *to.enter(q, k, v, self.axis), axis_name=self.axis, shards=to.shards,
            scoring=scoring, sinks=sinks, segment_ids=segment_ids, order=order,
        )  # fmt: skip
        return undo_order(to.leave(out, self.axis), to.shards, order)

    def kv_layout(self) -> KvLayout:
        """Return the layout: slices for "scores" and "local", otherwise slots of whole heads.

        Splitting slots moves less than slices from about 1.25 head_dim slots on, because a sum of
        scores grows with the number of slots.
        """
        inner = self.inner.kv_layout()
        if self.reduction == "local":
            return inner
        if self.reduction == "scores":
            return dataclasses.replace(inner, slice_axes=(self.axis,))
        return dataclasses.replace(inner, spread_axes=(self.axis,))

    def work(self, shape, sizes):
        inner = self.inner_shape(shape, sizes)
        if self.resolve(shape, sizes) == "exchange":
            shards = self._exchange(shape, sizes).shards
            if shards > 1:
                length = shape.seq_len // shards
                pieces = shards, length, shape.scoring, "zigzag"
                return inner.work(scores_of_pairs(*pieces), block_of_pairs(*pieces))
        return self.inner.work(inner, sizes)

    def inner_shape(self, shape: AttentionShape, sizes) -> AttentionShape:
        """Return the sizes of attention that the inner part sees."""
        reduction, m = self.resolve(shape, sizes), sizes[self.axis]
        if reduction == "heads":
            return dataclasses.replace(shape, whole_heads=False)
        if reduction == "exchange":
            to = self._exchange(shape, sizes)
            return dataclasses.replace(
                shape, heads=shape.heads // to.parts, kv_heads=to.table.shape[1]
            )
        if reduction == "gather":
            return dataclasses.replace(shape, value_dim=shape.values // m)
        return dataclasses.replace(
            shape, head_dim=shape.head_dim // m, in_lockstep=reduction == "scores"
        )

    def transfers(self, shape, sizes, calls):
        inner = self.inner.transfers(self.inner_shape(shape, sizes), sizes, calls)
        return self._own(shape, sizes, calls, backward=False) + inner

    def recompute_transfers(self, shape, sizes, calls):
        inner = self.inner.recompute_transfers(self.inner_shape(shape, sizes), sizes, calls)
        if self.resolve(shape, sizes) == "scores":
            return inner
        return self._own(shape, sizes, calls, backward=False) + inner

    def backward_transfers(self, shape, sizes, calls):
        inner = self.inner.backward_transfers(self.inner_shape(shape, sizes), sizes, calls)
        return self._own(shape, sizes, calls, backward=True) + inner

    def _own(self, shape: AttentionShape, sizes, calls, *, backward: bool):
        """Return the transfers of this level, without the inner part's."""
        reduction, m = self.resolve(shape, sizes), sizes[self.axis]
        tokens = shape.batch * shape.seq_len // size_over(sizes, self.seq_axes)
        item = shape.item_bytes
        if reduction in ("heads", "local") or m == 1:
            return ()
        moved: list[tuple[Role, str, float]]  # role, purpose, elements per token
        if reduction == "exchange":
            kind, width = "all-to-all", shape.head_dim // m
            keys = self._exchange(shape, sizes).table.size * width
            query = shape.heads * width
            moved = [
                ("queries", "queries", query), ("keys_values", "keys", keys),
                ("keys_values", "values", keys), ("outputs", "outputs", query),
            ]  # fmt: skip
        elif reduction == "gather":
            kind = "reduce-scatter" if backward else "all-gather"
            moved = [
                ("queries", "queries", shape.heads * shape.head_dim),
                ("keys_values", "keys", shape.kv_heads * shape.head_dim),
            ]
        else:
            kind, item = "all-reduce", shape.accumulator_bytes
            blocks = self.work(shape, sizes).scores / tokens
            moved = [("scores", "scores", blocks)]
            if backward:
                moved += [
                    ("scores_gradient", "their gradients", blocks),
                    ("scores_gradient", "row sums", shape.heads),
                ]
        return tuple(
            transfer(role, f"{what} of head slices", kind, (self.axis,), m,
                     tokens * per_token * item, calls)
            for role, what, per_token in moved
        )  # fmt: skip

    def _exchange(self, shape: AttentionShape, sizes) -> SliceExchange:
        """Return the exchange for this shape's slices. ValueError if there is none."""
        to = SliceExchange.of(shape.heads, shape.kv_heads, sizes[self.axis])
        context = (
            f"HeadSlices('{self.axis}'): exchange makes {to.parts} part(s) of {shape.heads} heads "
            f"for {sizes[self.axis]} devices, so each takes one of {to.shards} query shards"
        )
        if to.shards > 1 and not isinstance(self.inner, Local):
            raise ValueError(
                f"{context}, which inner={self.inner} does not split. Use a multiple of "
                f"{sizes[self.axis]} heads, or reduction='gather' or 'scores'."
            )
        if shape.seq_len % to.shards:
            raise ValueError(
                f"{context}, which do not divide {shape.seq_len} tokens. Use a multiple of them."
            )
        return to


@functools.lru_cache(maxsize=1024)
def _cheapest(part: HeadSlices, shape: AttentionShape, sizes: tuple[tuple[str, int], ...]) -> str:
    costs = {}
    for name in get_args(Exact):
        # A reduction that cannot split this shape raises ValueError and is no candidate.
        with contextlib.suppress(ValueError):
            one = dataclasses.replace(part, reduction=name)
            costs[name] = seconds(one, shape, dict(sizes), part.cluster)
    if not costs:
        raise ValueError(
            f"HeadSlices('{part.axis}'): no exact reduction can split {shape} over "
            f"{dict(sizes)} with inner={part.inner}. Try one by name to see why."
        )
    return min(costs, key=lambda name: costs[name])
