"""The expert parts of strategies: how a layer of experts runs over devices, with closed forms.

Shapes: T tokens on this device, D width, E experts, k choices per token.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from parallax.bounds import Transfer
from parallax.parallel.experts.chunks import ExpertShape, chunk_tokens, cut, devices_of, join
from parallax.parallel.experts.derived import flat_bytes, node_bytes
from parallax.parallel.experts.dispatch import capacity, combine, offsets, pack
from parallax.parallel.experts.exchange import (
    CompiledAs,
    ExchangeKind,
    Platform,
    compiled_as,
)
from parallax.parallel.experts.few_rows import Form, are_few, experts_of_few, form_of_few
from parallax.parallel.experts.flat_exchange import (
    Setting,
    flat_exchange,
    flat_transfers,
    run_experts,
)
from parallax.parallel.experts.grouped_mlp import ExpertWeights, gradient_sink
from parallax.parallel.experts.node_exchange import (
    node_exchange,
    node_transfers,
)
from parallax.parallel.experts.routing import Routing
from parallax.parallel.varying import vary_over, varying_axes

TILE = 512


class ExpertPart(Protocol):
    """The protocol of an expert part."""

    @property
    def exchange_axes(self) -> tuple[str, ...]:
        """The mesh axes over which tokens travel; () if they stay."""
        ...

    def run(
        self,
        x_TD: jax.Array,
        routing: Routing,
        weights: ExpertWeights,
        *,
        num_experts: int,
        expert_axes: tuple[str, ...],
        platform: Platform,
        decodes: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Run this device's tokens through their experts.

        Args:
          x_TD: [T, D].
          routing: the routing of these tokens, over all E experts.
          weights: weights of this device's E / (devices on expert_axes) consecutive experts.
          num_experts: E.
          expert_axes: mesh axes that split the experts, major first.
          platform: the platform that the program is compiled for.
          decodes: whether this is a decoding step, without gradients: see `form`.

        Returns:
          ([T, D] in x's dtype, choices that this device dropped, int32). The first is a partial sum
          over mesh axes that split F, and over those that split the experts if tokens stay. The
          caller sums it, and sums the second over mesh axes that split the tokens.

        Raises:
          ValueError: experts and mesh axes that do not match.
        """
        ...

    def form(self, shape: ExpertShape, sizes: Mapping[str, int], here: int) -> Form:
        """Return how a device's `here` experts run: in tiles, or a decoding step's few rows."""
        ...

    def chunked(self, shape: ExpertShape, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Return the chunks of a device's tokens, and the tokens of each."""
        ...

    def tiles(self, shape: ExpertShape, sizes: Mapping[str, int]) -> int:
        """Return the tiles per expert and chunk under uniform routing, where they run in tiles."""
        ...

    def transfers(
        self, shape: ExpertShape, sizes: Mapping[str, int], calls: int, platform: Platform = "gpu"
    ) -> tuple[Transfer, ...]:
        """Return the closed form of what `calls` forward calls send, without the caller's sums."""
        ...

    def recompute_transfers(
        self, shape: ExpertShape, sizes: Mapping[str, int], calls: int, platform: Platform = "gpu"
    ) -> tuple[Transfer, ...]:
        """Return the part of `transfers` that a layer recomputed for its gradient sends again."""
        ...

    def backward_transfers(
        self, shape: ExpertShape, sizes: Mapping[str, int], calls: int, platform: Platform = "gpu"
    ) -> tuple[Transfer, ...]:
        """Return the closed form of what `calls` backward calls send, without forward calls.

        Sums of gradients over mesh axes that replicate weights or tokens are not included.
        """
        ...


@dataclass(frozen=True)
class LocalExperts:
    """The expert part in which tokens stay: a device runs its experts on its own tokens.

    Attributes:
      tile: rows of one expert that are multiplied at once.
      chunks: pieces in which tokens run, which bounds the memory of their rows.
    """

    tile: int = TILE
    chunks: int = 1

    def __post_init__(self):
        _check_positive(self, "tile", "chunks")

    @property
    def exchange_axes(self) -> tuple[str, ...]:
        return ()

    def run(
        self, x_TD, routing, weights, *, num_experts, expert_axes, platform, decodes=False
    ):  # fmt: skip
        devices = lax.axis_size(expert_axes) if expert_axes else 1
        here = _check_weights(self, weights, num_experts, devices)
        dropped = routing.ids_Tk.min(initial=0) * 0
        x_TD, routing, weights = _vary_alike(x_TD, routing, weights, expert_axes)
        tokens, top_k = routing.ids_Tk.shape
        first = lax.axis_index(expert_axes).astype(jnp.int32) * here if expert_axes else 0
        if decodes and are_few(tokens, self.tile):
            ids_Tk, form = routing.ids_Tk - first, form_of_few(tokens, top_k, here)
            return experts_of_few(x_TD, ids_Tk, routing.gates_Tk, weights, form), dropped
        weights = weights.unpacked()
        n, each = chunk_tokens(tokens, self.chunks)
        places = capacity(each, top_k, here, 1)
        frozen, sink = gradient_sink(weights)

        def chunk(inputs):
            x_tD, ids_tk, gates_tk = inputs
            to = offsets(ids_tk, here, 1, places)
            y_1CD = run_experts(pack(x_tD, to), to.rows_Pe, frozen, sink, self.tile)
            return combine(y_1CD, gates_tk, to)

        inputs = (
            cut(x_TD, n, each),
            cut(routing.ids_Tk - first, n, each, fill=-1),
            cut(routing.gates_Tk, n, each),
        )
        return join(lax.map(chunk, inputs), tokens), dropped

    def form(self, shape, sizes, here):
        few = shape.decodes and are_few(shape.tokens, self.tile)
        return form_of_few(shape.tokens, shape.top_k, here) if few else "tiles"

    def chunked(self, shape, sizes):
        few = shape.decodes and are_few(shape.tokens, self.tile)
        return chunk_tokens(shape.tokens, 1 if few else self.chunks)

    def tiles(self, shape, sizes):
        return _tiles(self, shape, sizes)

    def transfers(self, shape, sizes, calls, platform: Platform = "gpu"):
        return ()

    def recompute_transfers(self, shape, sizes, calls, platform: Platform = "gpu"):
        return ()

    def backward_transfers(self, shape, sizes, calls, platform: Platform = "gpu"):
        return ()


@dataclass(frozen=True)
class ExchangeExperts:
    """The expert part in which tokens travel to their experts' devices, and outputs back home.

    Attributes:
      axis: mesh axis that splits the experts, or several, major first.
      exchange: "dense" sends buffers with room for every choice, "ragged" only the rows in use.
      capacity_factor: None drops nothing; otherwise an expert takes at most ceil(factor t k / E)
        choices from each device and chunk of t tokens and drops later ones, which makes it another
        model. If node-aware, a node takes the factor times its expected share of a device's tokens,
        and an expert that of a relay's choices.
      chunks: pieces of a device's tokens; one chunk's experts run while others' rows travel.
      node_aware: two steps over axis=(node axis, axis inside a node), so that a token enters
        another node once, and the gated outputs of that node return as one row.
      tile: rows of one expert that are multiplied at once.

    Cost: a device sends at least 2 k D (P-1)/P elements per token forward, and again backward;
      dense sends whole buffers: P min(k, e) / k times as much, or capacity_factor times. A GPU
      program overlaps ragged exchanges with experts only with XLA's option
      xla_gpu_enable_latency_hiding_scheduler.

    Reference: Lepikhin et al., "GShard", 2020 (capacity); node-limited sends as in DeepSeek-AI,
      "DeepSeek-V3", 2024, section 3.2.2.
    """

    axis: str | tuple[str, ...] = "expert"
    exchange: ExchangeKind = "dense"
    capacity_factor: float | None = None
    chunks: int = 4
    node_aware: bool = False
    tile: int = TILE

    def __post_init__(self):
        if not isinstance(self.axis, str):
            object.__setattr__(self, "axis", tuple(self.axis))
        _check_positive(self, "tile", "chunks")
        compiled_as(self.exchange, "cpu")
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            raise ValueError(
                f"ExchangeExperts: capacity_factor is {self.capacity_factor}. Use a number above "
                "0, or None to drop nothing."
            )
        if self.node_aware and len(self.exchange_axes) != 2:
            raise ValueError(
                f"ExchangeExperts: node_aware needs axis=(node axis, axis inside a node), got "
                f"{self.axis!r}."
            )

    @property
    def exchange_axes(self) -> tuple[str, ...]:
        return (self.axis,) if isinstance(self.axis, str) else self.axis

    @property
    def approximation(self) -> str:
        """The choices that may be dropped, in one line; "" if none."""
        if self.capacity_factor is None:
            return ""
        return f"experts take {self.capacity_factor:g} times their even share and drop the rest"

    @property
    def compiler_options(self) -> dict[str, bool]:
        """The XLA options for `jax.jit(..., compiler_options=)`.

        Without them XLA does not overlap a ragged exchange with experts.
        """
        ragged = self.exchange == "ragged"
        return {"xla_gpu_enable_latency_hiding_scheduler": True} if ragged else {}

    def compiled_exchange(self, platform: Platform) -> CompiledAs:
        """Return the exchange that a platform really compiles, in words for a report."""
        return compiled_as(self.exchange, platform)

    def run(
        self, x_TD, routing, weights, *, num_experts, expert_axes, platform, decodes=False
    ):  # fmt: skip
        if tuple(expert_axes) != self.exchange_axes:
            raise ValueError(
                f"{self}: tokens travel over mesh axes {self.exchange_axes}, but the experts are "
                f"split over {tuple(expert_axes) or 'none'}. Make them agree."
            )
        _check_weights(self, weights, num_experts, lax.axis_size(self.exchange_axes))
        x_TD, routing, weights = _vary_alike(x_TD, routing, weights, self.exchange_axes)
        exchange = node_exchange if self.node_aware else flat_exchange
        few = decodes and are_few(len(x_TD), self.tile, lax.axis_size(self.exchange_axes))
        weights = weights if few else weights.unpacked()
        return exchange(self._setting(platform, few), x_TD, routing, weights, num_experts)

    def form(self, shape, sizes, here):
        return "every" if self._are_few(shape, sizes) else "tiles"

    def chunked(self, shape, sizes):
        return chunk_tokens(shape.tokens, 1 if self._are_few(shape, sizes) else self.chunks)

    def tiles(self, shape, sizes):
        return _tiles(self, shape, sizes)

    def transfers(self, shape, sizes, calls, platform: Platform = "gpu"):
        closed_form = node_transfers if self.node_aware else flat_transfers
        setting = self._setting(platform, self._are_few(shape, sizes))
        return closed_form(setting, shape, sizes, calls)

    def recompute_transfers(self, shape, sizes, calls, platform: Platform = "gpu"):
        forward = self.transfers(shape, sizes, calls, platform)
        if not self.node_aware:
            return forward
        # The sums that relays send home are the result itself, which no gradient needs: those of
        # the last chunk, which travel alone, are not sent again. (If XLA finds that the chunk
        # before it is not read either, a program sends even less, and the report says so.)
        n, _ = chunk_tokens(shape.tokens, self.chunks)
        share = (2 * n - 1) / (2 * n)
        return tuple(
            dataclasses.replace(t, wire_bytes=t.wire_bytes * share, count=t.count - calls)
            if t.role == "node_rows"
            else t
            for t in forward
        )

    def backward_transfers(self, shape, sizes, calls, platform: Platform = "gpu"):
        # Rows and gates have gradients, which travel back; counts and choices do not.
        return tuple(
            t for t in self.transfers(shape, sizes, calls, platform) if t.role != "expert_choices"
        )

    def derived_bytes(
        self, shape: ExpertShape, sizes: Mapping[str, int], ids_Tk: np.ndarray
    ) -> dict[tuple[str, ...], np.ndarray]:
        """Return the bytes of rows that leave each device in one dropless ragged forward call.

        They include the rows' way to their experts and the outputs' way home.

        Args:
          shape: sizes on one device.
          sizes: mesh axis -> size.
          ids_Tk: the fixed routing of all devices' tokens, device by device.

        Returns:
          Mesh axes -> [P].

        Raises:
          ValueError: a capacity factor, whose drops are unknown, or another number of tokens.
        """
        if self.capacity_factor is not None:
            raise ValueError(
                f"derived_bytes: expected no capacity, got capacity_factor {self.capacity_factor}, "
                "whose dropped choices are unknown. Use capacity_factor=None."
            )
        derive = node_bytes if self.node_aware else flat_bytes
        return derive(self.exchange_axes, shape, sizes, ids_Tk)

    def _are_few(self, shape: ExpertShape, sizes: Mapping[str, int]) -> bool:
        senders = devices_of(self.exchange_axes, sizes)
        return shape.decodes and are_few(shape.tokens, self.tile, senders)

    def _setting(self, platform: Platform, few: bool) -> Setting:
        # Every chunk would read all weights again.
        chunks = 1 if few else self.chunks
        return Setting(
            self.exchange_axes, self.compiled_exchange(platform), self.capacity_factor, chunks,
            self.tile, few,
        )  # fmt: skip


def _tiles(part, shape: ExpertShape, sizes: Mapping[str, int]) -> int:
    """Return the whole tiles of the rows that one expert gets from all senders' chunks."""
    _, each = part.chunked(shape, sizes)
    senders = devices_of(part.exchange_axes, sizes)
    return math.ceil(each * shape.top_k * senders / shape.num_experts / part.tile)


def _check_positive(part, *names: str) -> None:
    for name in names:
        value = getattr(part, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{type(part).__name__}: {name} is {value!r}. Use 1 or more.")


def _check_weights(part, weights: ExpertWeights, num_experts: int, devices: int) -> int:
    """Return the experts per device. ValueError if the weights are those of another number."""
    here = weights.experts
    if here * devices != num_experts:
        raise ValueError(
            f"{type(part).__name__}: {num_experts} experts over {devices} devices are "
            f"{num_experts / devices:g} each, but the weights are of {here}. Split 'expert' over "
            "devices that divide it, and the weights as the experts."
        )
    return here


def _vary_alike(
    x_TD: jax.Array, routing: Routing, weights: ExpertWeights, axes: tuple[str, ...]
) -> tuple[jax.Array, Routing, ExpertWeights]:
    """Type arrays with gradients as varying over one set of mesh axes, before any loop.

    Gradients of replicated arrays are then summed once, after the loop. Choices vary only over
    `axes`, and so does the count of dropped ones.
    """
    arrays = (x_TD, routing.gates_Tk, weights)
    union = sorted(set(axes).union(*map(varying_axes, jax.tree.leaves((arrays, routing.ids_Tk)))))
    x_TD, gates_Tk, weights = jax.tree.map(lambda x: vary_over(x, union), arrays)
    return x_TD, Routing(vary_over(routing.ids_Tk, axes), gates_Tk), weights


EXPERT_PARTS = {"local": LocalExperts, "exchange": ExchangeExperts}
