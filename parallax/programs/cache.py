"""The KV cache of a model under a strategy: where its slots are, and how many bytes they take.

Keys and values of the prompt stay on the devices that computed them, or move once, after the
prompt, as the strategy's attention part says (`KvLayout`); those of new tokens go to the same
devices in turn. Shapes: B sequences, C slots, N layers, G key/value heads, K head_dim.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from parallax.kernels.validation import is_recorded
from parallax.models.block import attention_shape
from parallax.models.latent import KV_HEADS as LATENT_HEADS
from parallax.parallel.attention_part import AttentionShape, KvLayout, size_over
from parallax.parallel.cached_attention import slots_of
from parallax.parallel.experts import Platform
from parallax.parallel.split import Split
from parallax.programs.parameters import mesh_entry
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategy import Strategy
from parallax.workload import Workload


class KvCache(NamedTuple):
    """The keys and values of all layers, and the positions of the next tokens.

    Attributes:
      keys, values: [N, B, G, C, K], N including the layers that pad shorter stages, and on every
        stage, before its own, the dense first layers. Positions and steps determine which slots
        hold a token (`parallel/cache_slots.py`). Of latent attention the keys are the latents, one
        head on every device, and values are None.
      positions: [B] int32, the position of each sequence's next token.
      steps: scalar int32, tokens decoded so far.
    """

    keys: Any
    values: Any
    positions: Any
    steps: Any


@dataclass(frozen=True)
class ShardedCache:
    """The KV cache of a model under a strategy, for prompts of one (padded) length.

    Attributes:
      sharded: the model, with the prompts' workload: batch, tokens of the longest prompt (a
        multiple of `prompt_multiple`), microbatches of the prefill.
      new_tokens: slots for decoded tokens. More steps than that lose keys; the caller has to count.
      microbatches: microbatches of a decoding step; None takes as many as there are stages, or the
        next smaller number that divides a device's sequences.

    Raises:
      ValueError: a model that is not causal, or sizes that do not divide.

    While decoding, a batch that the sequence's mesh axes divide is split over them outside of
    attention; otherwise every device on these axes computes all sequences.
    """

    sharded: ShardedTransformer
    new_tokens: int
    microbatches: int | None = None

    def __post_init__(self):
        config, workload, strategy = self.sharded.config, self.workload, self.sharded.strategy
        context = f"Decoder with strategy '{strategy.name}'"
        if not config.causal:
            raise ValueError(
                f"{context}: model '{config.name}' is not causal: it has no next token. Use "
                "config.replace(causal=True)."
            )
        if workload.packed:
            raise ValueError(f"{context}: prompts must not be packed; got {workload}.")
        if self.sharded.chunks > 1:
            raise ValueError(
                f"{context}: {self.sharded.chunks} chunks of layers per stage are for training. "
                "Decode with another schedule: checkpoints and folders are the same."
            )
        if self.new_tokens < 1:
            raise ValueError(f"{context}: new_tokens must be at least 1, got {self.new_tokens}.")
        table = strategy.rules.table("decode")
        if table["act_seq"] or table["act_norm_seq"]:
            raise ValueError(
                f"{context}: one token cannot be split, but the rules map 'act_seq' or "
                "'act_norm_seq' while decoding. Add decode=(('act_seq', None),) to the rules."
            )
        if workload.seq_len % prompt_multiple(strategy):
            raise ValueError(
                f"{context}: prompts of {workload.seq_len} tokens do not split evenly. Pad them to "
                f"a multiple of {prompt_multiple(strategy)}."
            )
        if config.positions == "learned" and workload.seq_len + self.new_tokens > (
            config.max_seq_len
        ):
            raise ValueError(
                f"{context}: {workload.seq_len} + {self.new_tokens} tokens are more than model "
                f"'{config.name}' has learned positions for, {config.max_seq_len}. Use prompts of "
                f"at most {config.max_seq_len - self.new_tokens}."
            )
        missing = [
            a for a in strategy.experts.exchange_axes if a not in self.split.over("act_batch")
        ]
        if config.num_experts and missing:
            raise ValueError(
                f"{context}: experts are reached over mesh axes {tuple(missing)}, which must "
                f"split the sequences: {workload.batch} do not divide. Pad the batch to a multiple "
                f"of {batch_multiple(strategy)}."
            )
        if self.rows < 1 or self.rows % self.step_microbatches:
            raise ValueError(
                f"{context}: {self.step_microbatches} microbatches do not divide the {self.rows} "
                f"sequences that a device decodes. Use a divisor of {self.rows}."
            )

    @property
    def workload(self) -> Workload:
        """The workload of the prompts."""
        return self.sharded.workload

    @functools.cached_property
    def layout(self) -> KvLayout:
        """The layout of this batch's cache over the mesh."""
        strategy = self.sharded.strategy
        layout = strategy.attention.kv_layout()
        if self.sharded.config.latent is not None:  # devices have whole heads, and all latents
            layout = KvLayout(layout.seq_axes)
        rows, axes = self.workload.batch // strategy.split().count("act_batch"), ()
        for axis in layout.seq_axes:
            if rows % size_over(strategy.mesh_axes, (*axes, axis)):
                break
            axes = (*axes, axis)
        return KvLayout(layout.seq_axes, axes, layout.slice_axes, layout.spread_axes)

    @functools.cached_property
    def split(self) -> Split:
        """The split that model code sees in a decoding step."""
        return self.step_split("cpu")

    def step_split(self, platform: Platform) -> Split:
        """Return the split that model code sees in a decoding step on a platform."""
        split = self.sharded.strategy.split("decode", platform=platform)
        axes = dict(split.axes)
        axes["act_batch"] = axes["act_batch"] + self.layout.batch_axes
        return split.replace(axes=axes, kv=self.layout, decodes=True)

    @property
    def rows(self) -> int:
        """The number of sequences that a device computes in one step."""
        return self.workload.batch // self.split.count("act_batch")

    @functools.cached_property
    def step_microbatches(self) -> int:
        """The number of microbatches of a decoding step, M."""
        if self.microbatches is not None:
            return self.microbatches
        stages = self.split.count("layers")
        return max(m for m in range(1, stages + 1) if self.rows % m == 0)

    @property
    def slots(self) -> tuple[int, int]:
        """The slots per device for one sequence: (for the prompt, for new tokens).

        Their sum is a multiple of 8, as our kernel requires, if the strategy enables our kernels or
        the record validates this one.
        """
        devices = size_over(self.sharded.strategy.mesh_axes, self.layout.slot_axes)
        prompt, new = self.workload.seq_len // devices, slots_of(self.new_tokens, devices)
        if self.sharded.strategy.kernels == "mosaic" or is_recorded("decode_attention"):
            new += -(prompt + new) % 8
        return prompt, new

    @property
    def attention_shape(self) -> AttentionShape:
        """The sizes of one attention call in a step: sequences outside attention, all slots."""
        slots = sum(self.slots) * size_over(self.sharded.strategy.mesh_axes, self.layout.slot_axes)
        batch = self.rows // self.step_microbatches
        return attention_shape(
            self.sharded.config, self.split, batch, slots, packed=False, cached=True
        )

    @property
    def cache_specs(self) -> KvCache:
        """The PartitionSpecs of the cache."""
        over, layout = self.sharded.strategy.split().over, self.layout
        batch, slots = mesh_entry(over("act_batch")), mesh_entry(layout.slot_axes)
        if self.sharded.config.latent is not None:
            heads = mesh_entry(over(*LATENT_HEADS))
            latents = PartitionSpec(mesh_entry(over("layers")), batch, heads, slots, None)
            return KvCache(latents, None, PartitionSpec(batch), PartitionSpec())
        # A slice of every head stays where it is unless slots are dealt out instead.
        width = tuple(a for a in over("head_dim") if a not in layout.spread_axes)
        heads = mesh_entry(over("act_kv_heads"))
        kv = PartitionSpec(mesh_entry(over("layers")), batch, heads, slots, mesh_entry(width))
        return KvCache(kv, kv, PartitionSpec(batch), PartitionSpec())

    @property
    def cache_shapes(self) -> KvCache:
        """The global shapes and dtypes of the cache."""
        config, shape = self.sharded.config, self.attention_shape
        # Every stage holds those of the dense first layers too.
        layers = (max(self.sharded.groups) + config.dense_layers) * len(self.sharded.groups)
        names = ("act_kv_heads",) if config.latent is None else LATENT_HEADS
        heads = shape.kv_heads * self.split.count(*names)
        batch, slots = self.workload.batch, shape.seq_len
        kv = jax.ShapeDtypeStruct((layers, batch, heads, slots, shape.head_dim), config.dtype)
        return KvCache(
            kv, None if shape.shared_values else kv,
            jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32),
        )  # fmt: skip

    def abstract_cache(self, mesh) -> KvCache:
        """Return the shapes of the cache with their shardings on `mesh`."""
        return jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
            ),
            self.cache_shapes, self.cache_specs,
        )  # fmt: skip

    def kv_bytes(self) -> int:
        """Return the bytes of keys and values that a device holds, and reads in one step.

        Latents are those of all heads, so devices that split the heads each hold all of them.
        """
        mesh = self.sharded.strategy.mesh.abstract()
        return sum(
            x.dtype.itemsize * math.prod(NamedSharding(mesh, spec).shard_shape(x.shape))
            for x, spec in zip(self.cache_shapes[:2], self.cache_specs[:2], strict=True)
            if x is not None
        )


def prompt_multiple(strategy: Strategy) -> int:
    """Return the number that the padded length of prompts must be a multiple of."""
    spread = strategy.attention.kv_layout().spread_axes
    return strategy.split().count("act_seq", "act_norm_seq") * size_over(strategy.mesh_axes, spread)


def batch_multiple(strategy: Strategy) -> int:
    """Return the number of devices that split the batch or exchange tokens; it divides a batch."""
    split = strategy.split()
    over = dict.fromkeys((*split.over("act_batch"), *strategy.experts.exchange_axes))
    return size_over(strategy.mesh_axes, tuple(over))
