"""The steps of a Transformer under a strategy: a prefill, a decoding step, a training step."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from parallax.bounds import Transfer, Trips
from parallax.models.config import ModelConfig
from parallax.models.flops import model_flops
from parallax.models.transformer import abstract_transformer
from parallax.parallel.layer_parts import CacheTiled
from parallax.parallel.stage_layers import padded_layers
from parallax.programs.communication import (
    ExpectedRouting,
    decode_transfers,
    expected_routing,
    forward_transfers,
    kv_cache_bytes,
)
from parallax.programs.decoding import Decoder
from parallax.programs.load_balance import LoadBalance
from parallax.programs.schedule_branches import training_branches, training_schedule
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps.model_step import ModelStep
from parallax.programs.train_communication import train_transfers
from parallax.programs.training import TrainState, TrainStep
from parallax.rules import Phase
from parallax.strategy import Strategy
from parallax.workload import Workload


class TransformerStep(ModelStep):
    """The common part of a Transformer's steps; each holds the `program` that makes its functions.

    Attributes:
      is_chained: whether the next call needs this one's results, so that it cannot start earlier,
        in the gaps of a pipeline.
    """

    donated: ClassVar[tuple[int, ...]] = ()
    is_chained: ClassVar[bool] = False

    @property
    @abstractmethod
    def sharded(self) -> ShardedTransformer:
        """The model under its strategy; a decoding step's with the workload of its prompts."""

    def with_config(
        self, config: ModelConfig, strategy: Strategy | None = None
    ) -> "TransformerStep":
        """Return the step of another model, under the same strategy or another one."""
        mine: Any = self
        sharded = replace(self.sharded, config=config, strategy=strategy or self.strategy)
        program = mine.program
        return type(mine)(sharded if program is self.sharded else replace(program, sharded=sharded))

    @property
    def decoder(self) -> Decoder | None:
        """The decoder whose cache the step reads; None if it reads none."""
        return None

    @property
    def held(self) -> ShardedTransformer:
        """The model with the workload whose activations a device holds during a call."""
        return self.sharded

    @property
    def config(self) -> ModelConfig:
        return self.sharded.config

    @property
    def strategy(self) -> Strategy:
        return self.sharded.strategy

    @property
    def workload(self) -> Workload:
        return self.sharded.workload

    @property
    def tokens(self) -> int:
        """The number of tokens that one call handles, over all devices."""
        return self.workload.tokens

    @property
    def dtype(self) -> str:
        return self.config.dtype

    @property
    def compiler_options(self) -> Mapping[str, bool | int | str]:
        return self.strategy.compiler_options

    @property
    def routing(self) -> ExpectedRouting | None:
        return expected_routing(self.config, self.strategy, self.sharded.workload, self.decoder)

    @property
    def notes(self) -> tuple[str, ...]:
        routing = self.routing
        said = (
            routing.note if routing else "", _chosen_by_xla(self.sharded), _kv_copies(self.sharded)
        )  # fmt: skip
        return tuple(note for note in said if note)

    @property
    def unmodelled(self) -> str:
        if isinstance(self.strategy.layers, CacheTiled):
            return (
                f"strategy '{self.strategy.name}' runs layers in weight tiles, for which there is "
                "no analytical model of time. Compile the program and predict that, or give the "
                "strategy with its inner layers."
            )
        return ""

    def state(self, mesh) -> Any:
        return self.sharded.init(jax.random.key(0), mesh)

    def transfers(self) -> tuple[Transfer, ...] | None:
        return None if _chosen_by_xla(self.sharded) else self.of_shard_map()

    @abstractmethod
    def of_shard_map(self) -> tuple[Transfer, ...]:
        """Return the transfers of the one `shard_map` around the model."""

    def kv_cache_bytes(self) -> float:
        return 0.0

    def load_balance(self) -> LoadBalance:
        sharded, strategy = self.sharded, self.strategy
        stages, microbatches = strategy.split().count("layers"), self.workload.microbatches
        ticks = strategy.layers.ticks(microbatches, stages)
        on_device = sum(jax.tree.leaves(sharded.shard_bytes()))
        parameters = jax.tree.leaves(abstract_transformer(sharded.config)[1])
        whole = sum(x.size * x.dtype.itemsize for x in parameters)
        groups = sharded.groups
        return LoadBalance(
            replication=on_device * strategy.mesh.size / whole,
            bubble=ticks / strategy.layers.microbatch_groups(microbatches, stages) - 1,
            padded_share=padded_layers(groups) / (len(groups) * max(groups)),
        )


@dataclass(frozen=True)
class Prefill(TransformerStep):
    """The forward pass of whole sequences to last-position logits."""

    program: ShardedTransformer
    phase: ClassVar[Phase] = "prefill"

    @property
    def sharded(self) -> ShardedTransformer:
        return self.program

    def with_microbatches(self, microbatches: int) -> Self:
        return type(self)(_in_microbatches(self.program, microbatches))

    def function(self, mesh) -> Callable[..., Any]:
        return self.program.forward(mesh, "last")

    def arguments(self, mesh) -> tuple[Any, ...]:
        return self.sharded.abstract_state(mesh), *self.sharded.abstract_inputs(mesh)

    def of_shard_map(self) -> tuple[Transfer, ...]:
        return forward_transfers(self.config, self.strategy, self.workload)

    def weight_bytes(self) -> float:
        return self.program.weight_bytes()

    def kv_cache_bytes(self) -> float:
        devices, copies = self.strategy.mesh.size, self.sharded.kv_copies
        if self.config.latent is not None:  # those that split the heads hold the same latents
            devices = self.strategy.split().count("act_batch", "act_seq", "layers")
            copies = 1
        return kv_cache_bytes(self.config, self.workload, devices, copies)

    def useful_flops(self) -> float:
        return model_flops(self.config, self.workload.batch, self.workload.seq_len)


@dataclass(frozen=True)
class Decoding(TransformerStep):
    """The decoding step: a new token of every sequence, after prompts of the workload's length."""

    program: Decoder
    phase: ClassVar[Phase] = "decode"
    donated: ClassVar[tuple[int, ...]] = (1,)
    is_chained: ClassVar[bool] = True

    @property
    def decoder(self) -> Decoder:
        return self.program

    @property
    def sharded(self) -> ShardedTransformer:
        return self.program.sharded

    @property
    def held(self) -> ShardedTransformer:
        """The model with the step's own workload: one token per sequence and device, no prompts."""
        devices = self.strategy.split().count("act_seq")
        workload = Workload(self.workload.batch, devices)
        return ShardedTransformer(self.config, self.strategy, workload)

    @property
    def workload(self) -> Workload:
        return replace(self.program.workload, microbatches=self.program.step_microbatches)

    @property
    def compiler_options(self) -> Mapping[str, bool | int | str]:
        return self.program.step_options

    @property
    def tokens(self) -> int:
        return self.workload.batch

    def with_microbatches(self, microbatches: int) -> Self:
        return type(self)(replace(self.program, microbatches=microbatches))

    def function(self, mesh) -> Callable[..., Any]:
        return self.program.step(mesh)

    def arguments(self, mesh) -> tuple[Any, ...]:
        tokens = jax.ShapeDtypeStruct(
            (self.workload.batch,), jnp.int32, sharding=self.program.token_sharding(mesh)
        )
        return self.sharded.abstract_state(mesh), self.program.abstract_cache(mesh), tokens

    def of_shard_map(self) -> tuple[Transfer, ...]:
        return decode_transfers(self.program)

    def weight_bytes(self) -> float:
        return self.program.weight_bytes()

    def kv_cache_bytes(self) -> float:
        return self.program.kv_bytes()

    def useful_flops(self) -> float:
        workload = self.workload
        return model_flops(self.config, workload.batch, 1, known_tokens=workload.seq_len)


@dataclass(frozen=True)
class Training(TransformerStep):
    """The training step: loss, gradients and the optimizer's update for one batch."""

    program: TrainStep
    phase: ClassVar[Phase] = "train"
    donated: ClassVar[tuple[int, ...]] = (0,)
    is_chained: ClassVar[bool] = True

    @property
    def sharded(self) -> ShardedTransformer:
        return self.program.sharded

    def with_microbatches(self, microbatches: int) -> Self:
        sharded = _in_microbatches(self.sharded, microbatches)
        return type(self)(replace(self.program, sharded=sharded))

    def function(self, mesh) -> Callable[..., Any]:
        return self.program.step(mesh)

    def arguments(self, mesh) -> tuple[Any, ...]:
        return self.program.abstract_state(mesh), *self.sharded.abstract_inputs(mesh)

    def state(self, mesh) -> TrainState:
        return self.program.init(jax.random.key(0), mesh)

    def of_shard_map(self) -> tuple[Transfer, ...]:
        train = self.program
        return train_transfers(
            self.config, self.strategy, self.workload, train.remat, train.param_bytes
        )

    def weight_bytes(self) -> float:
        return self.program.weight_bytes()

    @property
    def trips(self) -> Trips:
        return {**super().trips, **training_branches(self.sharded)}

    def load_balance(self) -> LoadBalance:
        schedule, balance = training_schedule(self.sharded), super().load_balance()
        return balance if schedule is None else replace(balance, bubble=schedule.bubble)

    def useful_flops(self) -> float:
        """Return three forward passes' FLOPs: backward counts twice; every position has logits."""
        batch, seq_len = self.workload.batch, self.workload.seq_len
        return 3 * model_flops(self.config, batch, seq_len, unembedded=seq_len)


def _in_microbatches(sharded: ShardedTransformer, microbatches: int) -> ShardedTransformer:
    return replace(sharded, workload=replace(sharded.workload, microbatches=microbatches))


def _kv_copies(sharded: ShardedTransformer) -> str:
    """Return how key/value heads are replicated over devices that split queries; "" if not."""
    split, heads = sharded.strategy.split(), sharded.config.num_kv_heads
    over = split.over("heads")
    if over == split.over("kv_heads"):
        return ""
    return (
        f"{heads} key/value heads over {split.count('heads')} devices of mesh axis "
        f"{'*'.join(over)}: each computes all of them with whole matrices, and keeps those its "
        f"queries read: {sharded.kv_copies} devices keep each head"
    )


def _chosen_by_xla(sharded: ShardedTransformer) -> str:
    """Return what moves outside of the one `shard_map`, without a closed form; "" if nothing."""
    moved = []
    if sharded.config.tie_embeddings:
        moved.append("the token table reaches the unembedding")
    if sharded.columns != sharded.config.vocab_size:
        moved.append(
            f"columns that pad a vocabulary of {sharded.config.vocab_size} to "
            f"{sharded.columns} are cut off the logits"
        )
    said = " and ".join(moved)
    return f"no closed form: {said} by collectives that XLA chooses" if said else ""
