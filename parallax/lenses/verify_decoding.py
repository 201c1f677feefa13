"""The verify lens for decoding: greedy tokens and their logits against the unsharded model's.

The reference has no KV cache: it runs the whole sequences again for every token.
"""

import functools
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from parallax.lenses.child import Progress
from parallax.lenses.reference import reference
from parallax.lenses.text import byte_tokens
from parallax.lenses.tolerance import judge
from parallax.lenses.verifying import draw, placed, relative_error
from parallax.models.config import ModelConfig
from parallax.models.transformer import abstract_transformer
from parallax.models.weights import cast
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
from parallax.results.lens_results import Exactness, Verification
from parallax.strategy import Strategy
from parallax.workload import Workload

NEW_TOKENS = 16


class Decoded(NamedTuple):
    """What a model decoded after B prompts of up to L tokens; N layers, V vocabulary.

    Attributes:
      tokens: [B, new] int32.
      logits: [B, new, V] float64, from which the tokens were chosen.
      expert_ids: [B, L + new, N, k] int32 choices of prompts and new tokens, except the last one's,
        on which no logits depend; () without experts.
    """

    tokens: np.ndarray
    logits: np.ndarray
    expert_ids: tuple[np.ndarray, ...] = ()


def verify_decoding(
    config: ModelConfig,
    cases: Sequence[tuple[Strategy, Workload]],
    text: bytes,
    text_name: str,
    dtypes: Sequence[str],
    *,
    new_tokens: int = NEW_TOKENS,
    on_progress: Progress = lambda line: None,
) -> list[Verification]:
    """Decode under every strategy after prompts of different lengths, and compare.

    Args:
      config, cases, text, text_name, dtypes: as for `verify_transformer`; seq_len is the length of
        the longest prompt, the others are up to a quarter shorter.
      new_tokens: tokens to generate per sequence.

    Returns:
      One Verification per case. In float64 each strategy feeds back its own tokens and routes by
      its own routers; in other dtypes it gets the float64 reference's tokens and choices of
      experts, so that a near-tie does not end the comparison.
    """
    first = cases[0][1]
    tokens = byte_tokens(text, first.batch, first.seq_len)
    lengths = (first.seq_len - np.arange(first.batch) % (first.seq_len // 4 + 1)).astype(np.int32)
    tokens = np.where(np.arange(first.seq_len) < lengths[:, None], tokens, 0)
    lowest = next((d for d in dtypes if d != "float64"), "float64")
    drawn = draw(config.replace(dtype=lowest))
    on_progress("unsharded model in float64")
    exact = greedy(config.replace(dtype="float64"), cast(drawn, "float64"), tokens, lengths,
                   new_tokens)  # fmt: skip
    own = {}
    for dtype in (d for d in dtypes if d != "float64"):
        on_progress(f"unsharded model in {dtype}")
        found = greedy(config.replace(dtype=dtype), cast(drawn, dtype), tokens, lengths,
                       new_tokens, exact)  # fmt: skip
        own[dtype] = relative_error(found.logits, exact.logits)
    results = []
    number, total = itertools.count(1), len(cases) * len(dtypes)
    for strategy, workload in cases:
        start, rows, same = time.perf_counter(), list[Exactness](), True
        for dtype in dtypes:
            on_progress(f"{next(number)} of {total}: {strategy.name} decoding in {dtype}")
            forced = None if dtype == "float64" else exact
            load = replace(workload, replayed=bool(forced and forced.expert_ids))
            sharded = ShardedTransformer(config.replace(dtype=dtype), strategy, load)
            found = decode(
                Decoder(sharded, new_tokens), cast(drawn, dtype), tokens, lengths, forced
            )
            if forced is None:
                same = bool((found.tokens == exact.tokens).all())
            error = relative_error(found.logits, exact.logits)
            rows.append(judge(dtype, error, None, own.get(dtype, 0.0)))
        results.append(
            Verification(
                model=config.name,
                devices=strategy.mesh.size,
                platform=jax.devices()[0].platform,
                workload=workload,
                text=text_name,
                logit_rms=float(np.sqrt(np.mean(np.square(exact.logits)))),
                rows=tuple(rows),
                seconds=time.perf_counter() - start,
                approximation=strategy.approximation,
                same_tokens=same,
            )
        )
    return results


def greedy(
    config: ModelConfig,
    state: nnx.State,
    tokens: np.ndarray,
    lengths: np.ndarray,
    new_tokens: int,
    forced: Decoded | None = None,
) -> Decoded:
    """Decode greedily with the unsharded model, without a KV cache.

    Args:
      config, state: the model and its parameters.
      tokens, lengths: prompts [B, L], padded at the end, and the prompt length per row [B].
      new_tokens: tokens to decode per sequence.
      forced: the tokens to feed back, and the experts to choose, instead of the model's own.
    """
    graph, rows = abstract_transformer(config)[0], jnp.arange(len(tokens))
    whole = np.pad(tokens, ((0, 0), (0, new_tokens))).astype(np.int32)

    @jax.jit
    def run(state, whole, tokens_NB, expert_ids):
        model = nnx.merge(graph, state)

        def one(whole, step_and_given):
            step, given = step_and_given
            logits, routing = reference(model, whole, None, *expert_ids)
            logits = logits[rows, lengths + step - 1]
            chosen = logits.argmax(-1).astype(jnp.int32) if given is None else given
            return whole.at[rows, lengths + step].set(chosen), (chosen, logits, routing[1:])

        steps = jnp.arange(new_tokens, dtype=jnp.int32)
        chosen, logits, routing = lax.scan(one, whole, (steps, tokens_NB))[1]
        return chosen, logits, tuple(ids[-1] for ids in routing)

    given = (None, ()) if forced is None else (forced.tokens.T, forced.expert_ids)
    return _rows_first(*jax.device_get(run(state, whole, *given)))


def decode(
    decoder: Decoder,
    state: nnx.State,
    tokens: np.ndarray,
    lengths: np.ndarray,
    forced: Decoded | None = None,
) -> Decoded:
    """Decode like `greedy`, but under a strategy with its KV cache; `state` is unsharded.

    The decoder takes the forced choices of experts if its workload says `replayed`.
    """
    sharded = decoder.sharded
    mesh = sharded.strategy.mesh.build(jax.devices()[: sharded.strategy.mesh.size])
    params = placed(sharded, mesh, state)
    prefill, step = decoder.prefill(mesh), decoder.step(mesh)
    alike = functools.partial(
        lax.with_sharding_constraint, shardings=NamedSharding(mesh, PartitionSpec())
    )
    ids = forced.expert_ids if forced is not None and decoder.workload.replayed else ()

    @jax.jit
    def run(params, tokens, lengths, given):
        def one(carry, given):
            cache, logits = carry
            forced, *ids = given
            chosen = logits.argmax(-1).astype(jnp.int32) if forced is None else forced
            cache, following = step(params, cache, chosen, *ids)
            return (cache, alike(following)), (chosen, logits)

        of_prompts = (x[:, : tokens.shape[1]] for x in ids)
        cache, logits = prefill(params, tokens, lengths, *of_prompts)
        return lax.scan(one, (cache, alike(logits)), given, length=decoder.new_tokens)[1]

    at = lengths[:, None] + np.arange(decoder.new_tokens)
    of_new = (np.swapaxes(x[np.arange(len(x))[:, None], at], 0, 1) for x in ids)
    given = (None if forced is None else forced.tokens.T, *of_new)
    return _rows_first(*jax.device_get(run(params, tokens.astype(np.int32), lengths, given)))


def _rows_first(tokens: np.ndarray, logits: np.ndarray, expert_ids=()) -> Decoded:
    return Decoded(tokens.T, np.swapaxes(np.asarray(logits, np.float64), 0, 1), expert_ids)
