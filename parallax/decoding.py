"""Decoding under a strategy: prompts into a cache, then one token of every sequence a step.

Keys and values stay on the devices that computed them, or go where the strategy's attention part
says, once, behind the prompt (`KvLayout`); new tokens' are dealt out over the same devices in turn.
Shapes: B sequences, L tokens of the longest prompt, C slots, N layers, G key/value heads, K
head_dim; M microbatches.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallax.kernels import dispatch
from parallax.kernels.validation import is_recorded
from parallax.models.block import attention_shape
from parallax.models.transformer import abstract_transformer
from parallax.parallel.attention_part import AttentionShape, KvLayout, size_over
from parallax.parallel.cache_slots import runs_of, slot_spans
from parallax.parallel.cached_attention import CachedLayer, CachedLayers, picks_rows, slots_of
from parallax.parallel.experts import Platform
from parallax.parallel.layer_parts import StackFunctions
from parallax.parallel.split import Split
from parallax.sharded_parameters import mesh_entry
from parallax.spmd import ShardedTransformer, platform_of


class KvCache(NamedTuple):
    """Keys and values of all layers, and which slots hold them.

    Attributes:
      keys, values: [N, B, G, C, K], N with the layers that fill up shorter stages. Which slots hold
        a token follows from positions and steps (`parallel/cache_slots.py`).
      positions: [B] int32, of each sequence's next token.
      steps: scalar int32, tokens decoded so far.
    """

    keys: Any
    values: Any
    positions: Any
    steps: Any


@dataclass(frozen=True)
class Decoder:
    """A model that decodes under a strategy, for prompts of one (padded) length.

    Attributes:
      sharded: the model, with the prompts' workload: batch, tokens of the longest prompt (a
        multiple of `prompt_multiple`), microbatches of the prefill.
      new_tokens: slots for what is decoded; more steps than that lose keys, the caller counts.
      microbatches: of a decoding step; None is as many as there are stages, or the next fewer that
        divide a device's sequences.

    Raises:
      ValueError: a model that is not causal, sizes that do not divide.

    A batch that the mesh axes of the sequence divide is dealt out over them while decoding, outside
    of attention; otherwise every device of these axes computes all of its sequences.
    """

    sharded: ShardedTransformer
    new_tokens: int
    microbatches: int | None = None

    def __post_init__(self):
        config, workload, strategy = self.sharded.config, self.workload, self.sharded.strategy
        where = f"Decoder with strategy '{strategy.name}'"
        if not config.causal:
            raise ValueError(
                f"{where}: model '{config.name}' is not causal: it has no next token. Use "
                "config.replace(causal=True)."
            )
        if workload.packed or workload.replayed:
            raise ValueError(f"{where}: prompts are neither packed nor replayed; got {workload}.")
        if self.new_tokens < 1:
            raise ValueError(f"{where}: new_tokens must be at least 1, got {self.new_tokens}.")
        table = strategy.rules.table("decode")
        if table["act_seq"] or table["act_norm_seq"]:
            raise ValueError(
                f"{where}: one token cannot be split, but the rules map 'act_seq' or "
                "'act_norm_seq' while decoding. Add decode=(('act_seq', None),) to the rules."
            )
        if workload.seq_len % prompt_multiple(strategy):
            raise ValueError(
                f"{where}: prompts of {workload.seq_len} tokens cannot be dealt out. Pad them to a "
                f"multiple of {prompt_multiple(strategy)}."
            )
        if config.positions == "learned" and workload.seq_len + self.new_tokens > (
            config.max_seq_len
        ):
            raise ValueError(
                f"{where}: {workload.seq_len} + {self.new_tokens} tokens are more than model "
                f"'{config.name}' has learned positions for, {config.max_seq_len}."
            )
        missing = [
            a for a in strategy.experts.exchange_axes if a not in self.split.over("act_batch")
        ]
        if config.num_experts and missing:
            raise ValueError(
                f"{where}: experts are reached over mesh axes {tuple(missing)}, which must then "
                f"split the sequences: {workload.batch} do not divide. Pad the batch to a multiple "
                f"of {batch_multiple(strategy)}."
            )
        if self.rows < 1 or self.rows % self.step_microbatches:
            raise ValueError(
                f"{where}: {self.step_microbatches} microbatches do not divide the {self.rows} "
                f"sequences that a device decodes. Use a divisor of {self.rows}."
            )

    @property
    def workload(self):
        """The prompts'."""
        return self.sharded.workload

    @functools.cached_property
    def layout(self) -> KvLayout:
        """How the cache is spread, this batch given."""
        strategy = self.sharded.strategy
        layout = strategy.attention.kv_layout()
        rows, axes = self.workload.batch // strategy.split().count("act_batch"), ()
        for axis in layout.seq_axes:
            if rows % size_over(strategy.mesh_axes, (*axes, axis)):
                break
            axes = (*axes, axis)
        return KvLayout(layout.seq_axes, axes, layout.slice_axes, layout.spread_axes)

    @functools.cached_property
    def split(self) -> Split:
        """What model code sees in a decoding step."""
        return self._step_split("cpu")

    def _step_split(self, platform: Platform) -> Split:
        split = self.sharded.strategy.split("decode", platform=platform)
        axes = dict(split.axes)
        axes["act_batch"] = axes["act_batch"] + self.layout.batch_axes
        return split.replace(axes=axes, kv=self.layout)

    @property
    def rows(self) -> int:
        """Sequences a device computes in one step."""
        return self.workload.batch // self.split.count("act_batch")

    @functools.cached_property
    def step_microbatches(self) -> int:
        """M of a step."""
        if self.microbatches is not None:
            return self.microbatches
        stages = self.split.count("layers")
        return max(m for m in range(1, stages + 1) if self.rows % m == 0)

    @property
    def slots(self) -> tuple[int, int]:
        """Slots a device has for one sequence: of the prompt, of new tokens.

        In eights, which our kernel asks for, where the strategy enables our kernels or the record
        validates this one.
        """
        devices = size_over(self.sharded.strategy.mesh_axes, self.layout.slot_axes)
        prompt, new = self.workload.seq_len // devices, slots_of(self.new_tokens, devices)
        if self.sharded.strategy.kernels == "mosaic" or is_recorded("decode_attention"):
            new += -(prompt + new) % 8
        return prompt, new

    @property
    def attention_shape(self) -> AttentionShape:
        """Sizes of one attention call of a step: sequences outside of attention, slots of all."""
        slots = sum(self.slots) * size_over(self.sharded.strategy.mesh_axes, self.layout.slot_axes)
        batch = self.rows // self.step_microbatches
        return attention_shape(self.sharded.config, self.split, batch, slots, packed=False)

    @property
    def cache_specs(self) -> KvCache:
        """PartitionSpecs."""
        over, layout = self.sharded.strategy.split().over, self.layout
        batch, slots = mesh_entry(over("act_batch")), mesh_entry(layout.slot_axes)
        # A slice of every head stays where it is unless slots are dealt out instead.
        width = tuple(a for a in over("head_dim") if a not in layout.spread_axes)
        heads = mesh_entry(over("act_kv_heads"))
        kv = PartitionSpec(mesh_entry(over("layers")), batch, heads, slots, mesh_entry(width))
        return KvCache(kv, kv, PartitionSpec(batch), PartitionSpec())

    @property
    def cache_shapes(self) -> KvCache:
        """Shapes and dtypes, global."""
        config, shape = self.sharded.config, self.attention_shape
        layers = max(self.sharded.groups) * len(self.sharded.groups)
        heads = shape.kv_heads * self.split.count("act_kv_heads")
        batch, slots = self.workload.batch, shape.seq_len
        kv = jax.ShapeDtypeStruct((layers, batch, heads, slots, config.head_dim), config.dtype)
        return KvCache(
            kv, kv, jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32),
        )  # fmt: skip

    def abstract_cache(self, mesh) -> KvCache:
        """Shapes with their shardings on `mesh`."""
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            self.cache_shapes, self.cache_specs,
        )  # fmt: skip

    def kv_bytes(self) -> int:
        """Bytes of keys and values a device holds (and reads in one step)."""
        mesh = self.sharded.strategy.mesh.abstract()
        return sum(
            x.dtype.itemsize * math.prod(NamedSharding(mesh, spec).shard_shape(x.shape))
            for x, spec in zip(self.cache_shapes[:2], self.cache_specs[:2], strict=True)
        )

    def weight_bytes(self) -> float:
        """Bytes of weights a device reads in one step: its layers once a tick."""
        strategy, sizes = self.sharded.strategy, self.sharded.shard_bytes()
        ticks = strategy.layers.ticks(self.step_microbatches, self.split.count("layers"))
        layers = sum(jax.tree.leaves(sizes["layers"]))
        head = sum(jax.tree.leaves(self.sharded.untied.shard_bytes()["unembed_DV"]))
        return float(ticks * layers + head)

    def token_sharding(self, mesh) -> NamedSharding:
        """Of a step's tokens [B]."""
        return NamedSharding(mesh, self._token_spec)

    @property
    def _token_spec(self) -> PartitionSpec:
        return PartitionSpec(mesh_entry(self.split.over("act_batch")))

    def prefill(self, mesh) -> Callable[..., tuple[KvCache, jax.Array]]:
        """(params, tokens [B, L], lengths [B]) -> the cache, logits [B, V] of each last token.

        Prompts are padded behind; lengths (int32, at least 1) say how much of a row is prompt.
        """
        over = self.sharded.strategy.split().over
        batch = mesh_entry(over("act_batch"))
        mapped = jax.shard_map(
            self._on(self._prefill, mesh), mesh=mesh,
            in_specs=(self.sharded.untied.specs, PartitionSpec(batch, None), PartitionSpec(batch)),
            out_specs=(self.cache_specs, PartitionSpec(batch, mesh_entry(over("vocab")))),
            check_vma=True,
        )  # fmt: skip
        return self._whole(mapped, mesh)

    def step(self, mesh) -> Callable[..., tuple[KvCache, jax.Array]]:
        """(params, cache, tokens [B]) -> the cache with these tokens, logits [B, V] of the next.

        Jit it with `donate_argnums=1`: the cache is changed in place.
        Cost: `communication.decode_transfers`; reads `weight_bytes` and `kv_bytes`.
        """
        over = self.split.over
        logits = PartitionSpec(mesh_entry(over("act_batch")), mesh_entry(over("vocab")))
        mapped = jax.shard_map(
            self._on(self._step, mesh), mesh=mesh,
            in_specs=(self.sharded.untied.specs, self.cache_specs, self._token_spec),
            out_specs=(self.cache_specs, logits),
            check_vma=True,
        )  # fmt: skip
        return self._whole(mapped, mesh)

    def _on(self, body: Callable, mesh) -> Callable:
        return self.sharded.strategy.enabling(functools.partial(body, platform=platform_of(mesh)))

    def _whole(self, mapped: Callable, mesh) -> Callable[..., tuple[KvCache, jax.Array]]:
        """Around the map: parameters as it takes them, logits without columns that fill up."""

        def run(params, *inputs):
            cache, logits = mapped(self.sharded.untie(params, mesh), *inputs)
            return cache, self.sharded.of_vocabulary(logits)

        return run

    def _prefill(self, state, tokens, lengths, *, platform: Platform):
        split = self.sharded.strategy.split(platform=platform).replace(kv=self.layout)
        model = nnx.merge(abstract_transformer(self.sharded.untied.config)[0], state)
        seq_len = self.workload.seq_len
        functions = StackFunctions(
            embed=lambda inputs: model.embed(inputs[0], None, split),
            blocks=lambda x, inputs, round=None: model.blocks(x, None, split, seq_len, round=round),
            keep=lambda x, inputs: split.token_at(x, inputs[1] - 1, seq_len),
            finish=lambda x, inputs: model.head(x, split),
        )
        layers = self.sharded.strategy.layers
        logits, (_, kv) = layers.run(
            functions, (tokens, lengths), self.workload.microbatches, split
        )
        keys, values = (self._prompt_slots(x) for x in kv)
        cache = KvCache(keys, values, lengths, jnp.zeros((), jnp.int32))
        return cache, logits.reshape(-1, logits.shape[-1])

    def _prompt_slots(self, x_MNBLGK: jax.Array) -> jax.Array:
        """Keys or values of the prompts as the cache holds them, with room for new tokens."""
        x_NMBGLK = jnp.moveaxis(jnp.swapaxes(x_MNBLGK, 3, 4), 0, 1)
        x_NBGLK = x_NMBGLK.reshape(x_NMBGLK.shape[0], -1, *x_NMBGLK.shape[3:])
        if axes := self.layout.spread_axes:
            x_NBGLK = lax.all_to_all(x_NBGLK, axes, split_axis=3, concat_axis=4, tiled=True)
        return jnp.pad(x_NBGLK, ((0, 0), (0, 0), (0, 0), (0, self.slots[1]), (0, 0)))

    @functools.cached_property
    def _runs(self) -> np.ndarray:
        """[devices of the slots, S, 3], see `runs_of`."""
        strategy, workload = self.sharded.strategy, self.workload
        split = strategy.split()
        pieces = split.count("act_seq")
        positions = [
            strategy.attention.positions(piece, workload.seq_len // pieces, split.mesh_axes)
            for piece in range(pieces)
        ]
        return runs_of(np.reshape(positions, (-1, self.slots[0])))

    def _step(self, state, cache: KvCache, tokens, *, platform: Platform):
        split, layout, count = self._step_split(platform), self.layout, self.step_microbatches
        model = nnx.merge(abstract_transformer(self.sharded.untied.config)[0], state)
        devices = size_over(split.mesh_axes, layout.slot_axes)
        index = lax.axis_index(layout.slot_axes) if layout.slot_axes else 0
        keeps, slot = cache.steps % devices == index, self.slots[0] + cache.steps // devices
        spans = slot_spans(
            jnp.asarray(self._runs)[index], cache.positions - cache.steps, self.slots[0],
            (cache.steps + (devices - 1) - index) // devices,
        )  # fmt: skip
        positions = cache.positions
        if layout.batch_axes:
            first = lax.axis_index(layout.batch_axes) * self.rows
            positions = lax.dynamic_slice_in_dim(positions, first, self.rows)
        rows = _Rows(size_over(split.mesh_axes, layout.batch_axes), count)
        numbers = jnp.repeat(jnp.arange(count, dtype=jnp.int32), self.rows // count)

        def blocks(x, inputs, round=None):
            _, positions, numbers = inputs
            if round is not None:
                return slabs(x, positions, numbers.reshape(round.microbatches, -1)[:, 0], round)
            take = functools.partial(rows.take, number=numbers[0])

            def of_layer(keys, values):
                if picks_rows(keys, values, layout):
                    rows_of = take(jnp.arange(keys.shape[0], dtype=jnp.int32))
                    return CachedLayer(keys, values, take(spans), keeps, rows_of)
                return CachedLayer(take(keys), take(values), take(spans), keeps)

            layers = CachedLayers(cache.keys, cache.values, of_layer)
            return model.through_layers(x, positions[:, None], split, cache=layers)

        def slabs(x, positions, numbers, round):
            def cached(layer, tile, r):
                number = lax.dynamic_index_in_dim(numbers, r, keepdims=False)
                take = functools.partial(
                    rows.take_heads, layer=layer, number=number, tile=tile,
                    tiles=round.tiles.attention,
                )  # fmt: skip
                # A slab's heads do not lie together, and would be copied for another kernel.
                if "mosaic" in dispatch.enabled():
                    reason = "heads of a slab are not together"
                    dispatch.record_refusal("decode_attention", "mosaic", reason)
                return CachedLayer(
                    take(cache.keys), take(cache.values), rows.take(spans, number), keeps,
                    implementation="xla",
                )  # fmt: skip

            return model.through_slabs(x, positions[:, None], split, round, cached=cached)

        functions = StackFunctions(
            embed=lambda inputs: model.look_up(inputs[0][:, None], inputs[1][:, None], split),
            blocks=blocks,
            keep=lambda x, inputs: x[:, 0],
            finish=lambda x, inputs: model.head(x, split),
        )
        logits, (_, kv) = self.sharded.strategy.layers.run(
            functions, (tokens, positions, numbers), count, split
        )

        def put(whole, new, axis):
            old = lax.dynamic_index_in_dim(whole, slot, axis, keepdims=False)
            new = jnp.where(keeps, new, old)
            return lax.dynamic_update_index_in_dim(whole, new, slot, axis)

        keys, values = (rows.join(x) for x in kv)
        cache = KvCache(
            put(cache.keys, keys, 3), put(cache.values, values, 3), cache.positions + 1,
            cache.steps + 1,
        )  # fmt: skip
        return cache, logits.reshape(-1, logits.shape[-1])


class _Rows(NamedTuple):
    """The cache's sequences, cut as microbatches meet them: `shares` of each gathered together.

    Attributes:
      shares: devices whose queries are gathered.
      microbatches: of every device's share.
    """

    shares: int
    microbatches: int

    def take(self, x: jax.Array, number) -> jax.Array:
        """Of all sequences [B, ...], one microbatch's of all shares."""
        if self.microbatches == 1:
            return x
        x = x.reshape(self.shares, self.microbatches, -1, *x.shape[1:])
        x = lax.dynamic_index_in_dim(x, number, 1, keepdims=False)
        return x.reshape(-1, *x.shape[2:])

    def take_heads(self, x: jax.Array, layer, number, tile, tiles: int) -> jax.Array:
        """Of all layers' keys or values [N, B, G, C, K], one slab's heads of one microbatch.

        In one slice, which depends on the microbatch: XLA would move one that does not out of the
        loop over microbatches, and copy the cache for it.
        """
        layers, _, heads, *rest = x.shape
        x = x.reshape(layers, self.shares, self.microbatches, -1, heads, *rest)
        width = heads // tiles
        starts = (jnp.asarray(i, jnp.int32) for i in (layer, 0, number, 0, tile * width, 0, 0))
        sizes = (1, self.shares, 1, x.shape[3], width, *rest)
        return lax.dynamic_slice(x, tuple(starts), sizes).reshape(-1, width, *rest)

    def join(self, x: jax.Array) -> jax.Array:
        """Of microbatches and layers [M, N, b, ...], all sequences of each layer [N, B, ...]."""
        microbatches, layers, _, *rest = x.shape
        x = x.reshape(microbatches, layers, self.shares, -1, *rest)
        return jnp.moveaxis(x, 0, 2).reshape(layers, -1, *rest)


def prompt_multiple(strategy) -> int:
    """What the padded length of prompts must be a multiple of."""
    spread = strategy.attention.kv_layout().spread_axes
    return strategy.split().count("act_seq", "act_norm_seq") * size_over(strategy.mesh_axes, spread)


def batch_multiple(strategy) -> int:
    """What the batch must be a multiple of: all that prefill splits, or exchanges experts over."""
    split = strategy.split()
    over = dict.fromkeys((*split.over("act_batch"), *strategy.experts.exchange_axes))
    return size_over(strategy.mesh_axes, tuple(over))
