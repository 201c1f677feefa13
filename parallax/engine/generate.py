"""Generation of tokens under a strategy, on the devices at hand.

Shapes: B sequences, L tokens of the longest prompt, V vocabulary.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from parallax.distributed.agreement import together
from parallax.distributed.devices import free_bytes
from parallax.distributed.values import on_host
from parallax.engine.latency import Latency
from parallax.engine.sampling import Sampling, next_tokens, same_on_all
from parallax.models.config import ModelConfig
from parallax.programs.cache import batch_multiple, prompt_multiple
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategy import Strategy
from parallax.workload import Workload

OnToken = Callable[[int, int], None]
# Prompts are also padded to a multiple of this, so that a second call of about the same length can
# reuse the compiled program.
_PADDING = 16


@dataclass(frozen=True)
class Continuation:
    """The tokens generated for one prompt.

    Attributes:
      tokens: the new tokens, without a stop token.
      finished: "stop" at a stop token, "length" at max_new_tokens.
    """

    tokens: tuple[int, ...]
    finished: Literal["stop", "length"]


@dataclass(frozen=True)
class Generation:
    """The tokens generated for a batch of prompts, with latencies.

    Attributes:
      continuations: one per prompt, in order.
      latency: times of the batch.
      kv_bytes: bytes of keys and values per device.
      notes: one line for each thing that was padded or sharded otherwise than asked.
    """

    continuations: tuple[Continuation, ...]
    latency: Latency
    kv_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Generator:
    """A model with its parameters, ready to generate under a strategy.

    Attributes:
      config: the model.
      strategy: how it is split.
      params: the parameters, as `ShardedTransformer` lays them out on `mesh`.
      mesh: a mesh of real or virtual devices.
    """

    config: ModelConfig
    strategy: Strategy
    params: nnx.State
    mesh: Any

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_tokens: Sequence[int] = (),
        cache_len: int | None = None,
        on_token: OnToken = lambda prompt, token: None,
    ) -> Generation:
        """Continue every prompt.

        Args:
          prompts: token ids, of any lengths.
          max_new_tokens: the most new tokens per sequence.
          sampling: how tokens are chosen; None is greedy.
          stop_tokens: ids that end a sequence; they are not part of the result.
          cache_len: tokens that a sequence may have, prompt included; None takes what is needed.
          on_token: called with (number of the prompt, token) as tokens come.

        Returns:
          One Continuation per prompt, times, and notes.

        Raises:
          ValueError: there is no prompt, a prompt is empty, an id is outside of the vocabulary, or
            there are more tokens than the cache, the memory or the table of learned positions has
            room for.

        Cost: the first call of a shape compiles; then one prefill, and one step per token. All
          processes of the mesh have to call it alike, and get the same tokens; for that each step
          also sums one integer per sequence over the mesh.
        """
        sampling = sampling or Sampling()
        check_prompts(self.config, prompts, max_new_tokens, cache_len, stop_tokens)
        batch, length, notes = self._padded(prompts)
        if self.config.positions == "learned":
            # Padding must not exceed the table of learned positions.
            longest = max(map(len, prompts))
            _check_table(self.config, longest, length, max_new_tokens)
        decoder = self._decoder(batch, length, max_new_tokens)
        together("the memory of the cache", lambda: _check_room(decoder, self.mesh))
        notes += _placed(decoder)
        start = time.perf_counter()
        prefill, step = self._programs(decoder, sampling)
        compile_s = time.perf_counter() - start

        tokens = np.zeros((batch, length), np.int32)
        lengths = np.ones(batch, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
        start = time.perf_counter()
        cache, chosen = prefill(self.params, tokens, lengths)
        times, stops = [], frozenset(stop_tokens)
        new: list[list[int]] = [[] for _ in prompts]
        finished: dict[int, Literal["stop", "length"]] = {}
        for number in range(1, max_new_tokens + 1):
            host_tokens = on_host(chosen)
            times.append(time.perf_counter() - start)
            if (
                len(finished)
                + sum(
                    row not in finished and int(host_tokens[row]) in stops
                    for row in range(len(prompts))
                )
                < len(prompts)
                and number < max_new_tokens
            ):
                # The next step already runs while the host looks at these tokens.
                cache, chosen = step(self.params, cache, chosen)
            for row in range(len(prompts)):
                if row in finished:
                    continue
                token = int(host_tokens[row])
                if token in stops:
                    finished[row] = "stop"
                    continue
                new[row].append(token)
                on_token(row, token)
                if number == max_new_tokens:
                    finished[row] = "length"
            if len(finished) == len(prompts):
                break
        latency = Latency(
            prompt_tokens=sum(map(len, prompts)),
            new_tokens=sum(map(len, new)),
            ttft_s=times[0],
            itl_s=tuple(b - a for a, b in itertools.pairwise(times)),
            total_s=times[-1],
            compile_s=compile_s,
        )
        continuations = tuple(
            Continuation(tuple(tokens), finished[row]) for row, tokens in enumerate(new)
        )
        return Generation(continuations, latency, decoder.kv_bytes(), tuple(notes))

    def _padded(self, prompts) -> tuple[int, int, list[str]]:
        """Return a batch and prompt length that the strategy can split, and padding notes."""
        many, notes = batch_multiple(self.strategy), []
        batch = -(-len(prompts) // many) * many
        if batch != len(prompts):
            notes.append(
                f"{len(prompts)} prompt(s) run as a batch of {batch}: strategy "
                f"'{self.strategy.name}' splits sequences over {many} devices"
            )
        multiple = prompt_multiple(self.strategy)
        if self.config.positions != "learned":
            multiple = math.lcm(multiple, _PADDING)
        return batch, -(-max(map(len, prompts)) // multiple) * multiple, notes

    def _decoder(self, batch: int, length: int, new_tokens: int) -> Decoder:
        local = batch // self.strategy.split().count("act_batch")
        asked = getattr(self.strategy.layers, "microbatches", None) or local
        stages = self.strategy.split().count("layers")
        most = min(asked, local, max(1, stages))
        count = next(m for m in range(most, 0, -1) if local % m == 0)
        workload = Workload(batch, length, count)
        return Decoder(ShardedTransformer(self.config, self.strategy, workload), new_tokens)

    def _programs(self, decoder: Decoder, sampling: Sampling) -> tuple[Any, Any]:
        """Compile the prefill, (params, tokens [B, L], lengths [B]) -> (cache, [B]), and step."""
        make = functools.partial(_programs, decoder, sampling, self.mesh)
        if not self.mesh.is_multi_process:
            return make()
        # The first collective then waits for nobody's compiler.
        return together("compiling prefill and decoding step", make)


@functools.lru_cache(maxsize=8)
def _programs(decoder: Decoder, sampling: Sampling, mesh) -> tuple[Any, Any]:
    prefill, step = decoder.prefill(mesh), decoder.step(mesh)
    tokens_sharding, share = decoder.token_sharding(mesh), lambda tokens: tokens
    if mesh.is_multi_process:
        # Every process has to see all tokens, and none may decide by a copy of its own.
        tokens_sharding, share = same_on_all(tokens_sharding)

    def first(params, tokens, lengths):
        cache, logits = prefill(params, tokens, lengths)
        return cache, share(next_tokens(logits, sampling, 0))

    def following(params, cache, tokens):
        number = cache.steps + 1
        cache, logits = step(params, cache, tokens)
        return cache, share(next_tokens(logits, sampling, number))

    cache = decoder.abstract_cache(mesh)
    shardings = jax.tree.map(lambda x: x.sharding, cache)
    options: Any = decoder.sharded.strategy.compiler_options
    step_options: Any = decoder.step_options
    if mesh.devices.flat[0].platform == "cpu":
        options = step_options = None  # the compiler options are for GPUs
    params = decoder.sharded.abstract_state(mesh)
    workload = decoder.workload
    prompts = jax.ShapeDtypeStruct((workload.batch, workload.seq_len), jnp.int32)
    rows = jax.ShapeDtypeStruct((workload.batch,), jnp.int32)
    made = jax.jit(first, out_shardings=(shardings, tokens_sharding))
    made = made.lower(params, prompts, rows).compile(options)
    decode = jax.jit(following, donate_argnums=1, out_shardings=(shardings, tokens_sharding))
    rows = jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=tokens_sharding)
    return made, decode.lower(params, cache, rows).compile(step_options)


def _check_room(decoder: Decoder, mesh: Any) -> None:
    """Raise ValueError, before anything is compiled, for a cache that does not fit."""
    own, needed = mesh.local_devices, decoder.kv_bytes()
    free = free_bytes(own[0])
    if own[0].platform == "cpu":
        needed *= len(own)
    if free is not None and needed > free:
        length = decoder.workload.seq_len + decoder.new_tokens
        raise ValueError(
            f"keys and values of {decoder.workload.batch:,} sequences of {length:,} tokens take "
            f"{needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free. Lower max_new_tokens, or "
            "give fewer or shorter prompts."
        )


def _placed(decoder: Decoder) -> list[str]:
    """Return notes on how the batch is spread over devices where that is not obvious."""
    layout, batch = decoder.layout, decoder.workload.batch
    if not layout.replicated_axes:
        return []
    axes = " x ".join(layout.replicated_axes)
    size = math.prod(decoder.split.mesh_axes[a] for a in layout.replicated_axes)
    return [
        f"every device along '{axes}' ({size}) computes the same sequences while decoding, and "
        f"attends to its own slots: {batch} sequences cannot be split over it"
    ]


def check_prompts(
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    cache_len: int | None = None,
    stop_tokens: Sequence[int] = (),
) -> None:
    """Raise ValueError, before anything is loaded, for what `Generator` cannot continue."""
    if not prompts:
        raise ValueError("no prompt. Give at least one.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}.")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(
                f"prompt {number} is empty. Give at least one token, for example the "
                "tokenizer's beginning-of-sequence token."
            )
        outside = [int(t) for t in prompt if not 0 <= int(t) < config.vocab_size]
        if outside:
            raise ValueError(
                f"prompt {number} has token {outside[0]}, but the tokens of '{config.name}' are "
                f"0 to {config.vocab_size - 1}. Encode it with the model's own tokenizer."
            )
        needed = len(prompt) + max_new_tokens
        if cache_len is not None and needed > cache_len:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens and {max_new_tokens} new ones "
                f"are asked for, but the cache has room for {cache_len}. Shorten the prompt, lower "
                f"max_new_tokens, or use a cache_len of at least {needed}."
            )
    for token in stop_tokens:
        if not 0 <= token < config.vocab_size:
            raise ValueError(
                f"stop token {token} is outside of the vocabulary, 0 to {config.vocab_size - 1}."
            )


def _check_table(config, longest: int, length: int, max_new_tokens: int) -> None:
    if length + max_new_tokens > config.max_seq_len:
        padded = f" (padded to {length})" if length != longest else ""
        raise ValueError(
            f"the longest prompt has {longest} tokens{padded} and {max_new_tokens} new "
            f"ones are asked for, but model '{config.name}' has learned positions for "
            f"{config.max_seq_len}. Shorten the prompt or lower max_new_tokens."
        )
