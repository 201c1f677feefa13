"""The decoder: prompts fill a cache, then each step decodes one token of every sequence.

Shapes: B sequences, L tokens of the longest prompt, C slots, N layers, G key/value heads, K
head_dim; M microbatches; k experts per token.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallax.compression import parse_format
from parallax.kernels import dispatch
from parallax.models.transformer import abstract_transformer
from parallax.parallel.attention_part import size_over
from parallax.parallel.cache_slots import runs_of, slot_spans, window_spans
from parallax.parallel.cached_attention import CachedLayer, CachedLayers, picks_rows
from parallax.parallel.experts import Platform
from parallax.parallel.layer_parts import CacheTiled, StackFunctions
from parallax.parallel.split import Split
from parallax.programs.cache import KvCache, ShardedCache
from parallax.programs.parameters import mesh_entry
from parallax.programs.router_balance import of_stage
from parallax.programs.sharded_model import platform_of

# Without it XLA joins products of the same rows (gate and up; queries, keys and values) into one,
# for which it lays their weights side by side in every step: with few rows, that costs twice what
# reading them does.
STEP_OPTIONS: dict[str, bool | int | str] = {"xla_gpu_dot_merger_threshold_mb": 0}
# Without it XLA computes the products of a single row as sums over columns, for which it transposes
# weights or writes them out, multiplied, in every step.
ONE_ROW_OPTIONS = STEP_OPTIONS | {"xla_disable_hlo_passes": "dot-strength-reduction"}


def step_options(
    rows: int, formats: Sequence[str], *, in_tiles: bool = False
) -> dict[str, bool | int | str]:
    """Return XLA's options for a step on GPUs.

    Args:
      rows: rows of its products.
      formats: formats in which weights are stored. Where they round activations, products of one
        row stay sums: the program of 8-bit products is modelled as four times as slow.
      in_tiles: whether layers run in weight tiles. There they stay sums too: those are fused with
        the tile's slice, which products would write out for every row.
    """
    keeps_sums = in_tiles or any(parse_format(name).activation_bits for name in formats)
    return ONE_ROW_OPTIONS if rows == 1 and not keeps_sums else STEP_OPTIONS


@dataclass(frozen=True)
class Decoder(ShardedCache):
    """A model that decodes under a strategy, with its `ShardedCache`."""

    @property
    def step_options(self) -> dict[str, bool | int | str]:
        """The options for `jax.jit(..., compiler_options=)` of a step on GPUs."""
        rows = self.rows // self.step_microbatches
        in_tiles = isinstance(self.sharded.strategy.layers, CacheTiled)
        own = step_options(rows, self.sharded.config.compression or (), in_tiles=in_tiles)
        return {**self.sharded.strategy.compiler_options, **own}

    def weight_bytes(self) -> float:
        """Return the bytes of weights that a device reads in one step: its layers once per tick."""
        return self.sharded.weight_bytes(self.step_microbatches)

    def token_sharding(self, mesh) -> NamedSharding:
        """Return the sharding of a step's tokens [B]."""
        return NamedSharding(mesh, self._token_spec)

    @property
    def _token_spec(self) -> PartitionSpec:
        return PartitionSpec(mesh_entry(self.split.over("act_batch")))

    def prefill(self, mesh) -> Callable[..., tuple[KvCache, jax.Array]]:
        """Return the function (params, tokens [B, L], lengths [B]) -> cache, last logits [B, V].

        Prompts are padded at the end; lengths (int32, at least 1) are those of the prompts. With
        fixed routing it takes expert ids [B, L, N, k] too.
        """
        over = self.sharded.strategy.split().over
        batch = mesh_entry(over("act_batch"))
        inputs = PartitionSpec(batch, None), PartitionSpec(batch)
        mapped = jax.shard_map(
            self._on(self._prefill, mesh), mesh=mesh,
            in_specs=(self.sharded.untied.specs, *inputs, *self._choice_specs(batch, 4)),
            out_specs=(self.cache_specs, PartitionSpec(batch, mesh_entry(over("vocab")))),
            check_vma=True,
        )  # fmt: skip
        return self._whole(mapped, mesh)

    def step(self, mesh) -> Callable[..., tuple[KvCache, jax.Array]]:
        """Return the function (params, cache, tokens [B]) -> cache, next logits [B, V].

        The new cache holds these tokens too. Jit it with `donate_argnums=1`: the cache is changed
        in place. With fixed routing it takes the tokens' expert ids [B, N, k] too.

        Cost: sends `communication.decode_transfers`; reads `weight_bytes` and `kv_bytes`.
        """
        over = self.split.over
        batch = mesh_entry(over("act_batch"))
        logits = PartitionSpec(batch, mesh_entry(over("vocab")))
        inputs = self.cache_specs, self._token_spec, *self._choice_specs(batch, 3)
        mapped = jax.shard_map(
            self._on(self._step, mesh), mesh=mesh, in_specs=(self.sharded.untied.specs, *inputs),
            out_specs=(self.cache_specs, logits),
            check_vma=True,
        )  # fmt: skip
        return self._whole(mapped, mesh)

    def _choice_specs(self, batch: Any, ndim: int) -> tuple[PartitionSpec, ...]:
        """Return the spec of fixed expert ids [B, ..., N, k] of `ndim` dims, if there are any."""
        return (PartitionSpec(batch, *[None] * (ndim - 1)),) if self.workload.replayed else ()

    def _own_choices(self, choices: tuple[jax.Array, ...], split: Split) -> jax.Array | None:
        """Return the fixed expert ids of this device's layers, [n, B, L, k], None if not fixed."""
        if not choices:
            return None
        return of_stage(jnp.moveaxis(choices[0], 2, 0), split, self.sharded.groups)

    def _on(self, body: Callable, mesh) -> Callable:
        return self.sharded.strategy.enabling(functools.partial(body, platform=platform_of(mesh)))

    def _whole(self, mapped: Callable, mesh) -> Callable[..., tuple[KvCache, jax.Array]]:
        """Wrap the `shard_map`: untie the parameters before it, drop padded columns after it."""

        def run(params, *inputs):
            cache, logits = mapped(self.sharded.untie(params, mesh), *inputs)
            return cache, self.sharded.of_vocabulary(logits)

        return run

    def _prefill(self, state, tokens, lengths, *choices, platform: Platform):
        split = self.sharded.strategy.split(platform=platform).replace(kv=self.layout)
        state, split = self.sharded.untied.entered(state, split)
        model = nnx.merge(abstract_transformer(self.sharded.untied.config)[0], state)
        seq_len = self.workload.seq_len

        def blocks(x, inputs, round=None):
            own = self._own_choices(inputs[2:], split)
            return model.blocks(x, None, split, seq_len, own, round)

        functions = StackFunctions(
            embed=lambda inputs: model.embed(inputs[0], None, split),
            blocks=blocks,
            keep=lambda x, inputs: split.token_at(x, inputs[1] - 1, seq_len),
            finish=lambda x, inputs: model.head(x, split),
        )
        layers = self.sharded.strategy.layers
        logits, (_, kv) = layers.run(
            functions, (tokens, lengths, *choices), self.workload.microbatches, split
        )
        keys, values = jax.tree.map(self._prompt_slots, kv)
        cache = KvCache(keys, values, lengths, jnp.zeros((), jnp.int32))
        return cache, logits.reshape(-1, logits.shape[-1])

    def _prompt_slots(self, x_MNBLGK: jax.Array) -> jax.Array:
        """Return keys or values of the prompts as the cache holds them, with new tokens' slots."""
        x_NMBGLK = jnp.moveaxis(jnp.swapaxes(x_MNBLGK, 3, 4), 0, 1)
        x_NBGLK = x_NMBGLK.reshape(x_NMBGLK.shape[0], -1, *x_NMBGLK.shape[3:])
        if axes := self.layout.spread_axes:
            x_NBGLK = lax.all_to_all(x_NBGLK, axes, split_axis=3, concat_axis=4, tiled=True)
        return jnp.pad(x_NBGLK, ((0, 0), (0, 0), (0, 0), (0, self.slots[1]), (0, 0)))

    @functools.cached_property
    def _runs(self) -> np.ndarray:
        """The runs of positions in each device's slots, [devices, S, 3]; see `runs_of`."""
        strategy, workload = self.sharded.strategy, self.workload
        split = strategy.split()
        pieces = split.count("act_seq")
        positions = [
            strategy.attention.positions(piece, workload.seq_len // pieces, split.mesh_axes)
            for piece in range(pieces)
        ]
        return runs_of(np.reshape(positions, (-1, self.slots[0])))

    def _step(self, state, cache: KvCache, tokens, *choices, platform: Platform):
        layout, count = self.layout, self.step_microbatches
        state, split = self.sharded.untied.entered(state, self.step_split(platform))
        model = nnx.merge(abstract_transformer(self.sharded.untied.config)[0], state)
        devices = size_over(split.mesh_axes, layout.slot_axes)
        index = lax.axis_index(layout.slot_axes) if layout.slot_axes else 0
        keeps, slot = cache.steps % devices == index, self.slots[0] + cache.steps // devices
        runs, lengths = jnp.asarray(self._runs)[index], cache.positions - cache.steps
        whole = slot_spans(
            runs, lengths, self.slots[0], (cache.steps + (devices - 1) - index) // devices
        )

        def spans(window: int | None) -> jax.Array:
            if window is None:
                return whole
            oldest = cache.positions - (window - 1)
            return window_spans(
                whole, runs, oldest, lengths, self.slots[0], jnp.asarray(index), devices
            )

        positions = cache.positions
        if layout.batch_axes:
            first = lax.axis_index(layout.batch_axes) * self.rows
            positions = lax.dynamic_slice_in_dim(positions, first, self.rows)
        rows = _Rows(size_over(split.mesh_axes, layout.batch_axes), count)
        numbers = jnp.repeat(jnp.arange(count, dtype=jnp.int32), self.rows // count)

        def blocks(x, inputs, round=None):
            _, positions, numbers, *fixed = inputs
            if round is not None:
                return tiled(x, positions, numbers.reshape(round.microbatches, -1)[:, 0], round)
            take = functools.partial(rows.take, number=numbers[0])

            def of_layer(keys, values, window):
                if picks_rows(keys, values, layout):
                    rows_of = take(jnp.arange(keys.shape[0], dtype=jnp.int32))
                    return CachedLayer(keys, values, take(spans(window)), keeps, rows_of)
                keys, values = jax.tree.map(take, (keys, values))
                return CachedLayer(keys, values, take(spans(window)), keeps)

            layers = CachedLayers(cache.keys, cache.values, of_layer)
            own = self._own_choices(tuple(ids[:, None] for ids in fixed), split)
            return model.through_layers(
                x, positions[:, None], split, expert_ids_NBLk=own, cache=layers
            )

        def tiled(x, positions, numbers, group):
            def cached(layer, tile, r, window):
                number = lax.dynamic_index_in_dim(numbers, r, keepdims=False)
                shared = cache.values is None  # by all heads, so by all tiles
                take = functools.partial(
                    rows.take_heads, layer=layer, number=number, tile=0 if shared else tile,
                    tiles=1 if shared else group.tiles.attention,
                )  # fmt: skip
                # A weight tile's heads are not contiguous: any other kernel would need a copy.
                reason = "heads of a weight tile are not contiguous"
                dispatch.record_refusal("decode_attention", "mosaic", reason)
                keys, values = jax.tree.map(take, (cache.keys, cache.values))
                return CachedLayer(
                    keys, values, rows.take(spans(window), number), keeps, implementation="xla"
                )

            return model.through_weight_tiles(x, positions[:, None], split, group, cached=cached)

        functions = StackFunctions(
            embed=lambda inputs: model.look_up(inputs[0][:, None], inputs[1][:, None], split),
            blocks=blocks,
            keep=lambda x, inputs: x[:, 0],
            finish=lambda x, inputs: model.head(x, split),
        )
        logits, (_, kv) = self.sharded.strategy.layers.run(
            functions, (tokens, positions, numbers, *choices), count, split
        )

        def put(whole, new, axis):
            old = lax.dynamic_index_in_dim(whole, slot, axis, keepdims=False)
            new = jnp.where(keeps, new, old)
            return lax.dynamic_update_index_in_dim(whole, new, slot, axis)

        new = jax.tree.map(rows.join, kv)
        keys, values = jax.tree.map(lambda whole, x: put(whole, x, 3), tuple(cache[:2]), new)
        cache = KvCache(keys, values, cache.positions + 1, cache.steps + 1)
        return cache, logits.reshape(-1, logits.shape[-1])


class _Rows(NamedTuple):
    """The cache's sequences, cut into microbatches of several devices' shares.

    Attributes:
      shares: devices whose queries are gathered.
      microbatches: microbatches in every device's share.
    """

    shares: int
    microbatches: int

    def take(self, x: jax.Array, number) -> jax.Array:
        """Return one microbatch of all shares, from all sequences [B, ...]."""
        if self.microbatches == 1:
            return x
        x = x.reshape(self.shares, self.microbatches, -1, *x.shape[1:])
        x = lax.dynamic_index_in_dim(x, number, 1, keepdims=False)
        return x.reshape(-1, *x.shape[2:])

    def take_heads(self, x: jax.Array, layer, number, tile, tiles: int) -> jax.Array:
        """Return one weight tile's heads of one microbatch, from all layers [N, B, G, C, K].

        It is one slice that depends on the microbatch: XLA would move any other slice out of the
        loop over microbatches, and copy the cache for it.
        """
        layers, _, heads, *rest = x.shape
        x = x.reshape(layers, self.shares, self.microbatches, -1, heads, *rest)
        width = heads // tiles
        starts = (jnp.asarray(i, jnp.int32) for i in (layer, 0, number, 0, tile * width, 0, 0))
        sizes = (1, self.shares, 1, x.shape[3], width, *rest)
        return lax.dynamic_slice(x, tuple(starts), sizes).reshape(-1, width, *rest)

    def join(self, x: jax.Array) -> jax.Array:
        """Join the microbatches [M, N, b, ...] into all sequences of each layer [N, B, ...]."""
        microbatches, layers, _, *rest = x.shape
        x = x.reshape(microbatches, layers, self.shares, -1, *rest)
        return jnp.moveaxis(x, 0, 2).reshape(layers, -1, *rest)
