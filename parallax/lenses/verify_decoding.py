"""The verify lens for decoding: greedy tokens and their logits against the unsharded model's.

The reference has no KV cache: it runs the whole sequences again for every token.
"""

import functools
import itertools
import time
from collections.abc import Sequence

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
from parallax.lenses.verifying import draw, relative_error
from parallax.models.config import ModelConfig
from parallax.models.transformer import abstract_transformer
from parallax.models.weights import cast
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
from parallax.results.lens_results import Exactness, Verification
from parallax.strategy import Strategy
from parallax.workload import Workload

NEW_TOKENS = 16


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
      One Verification per case. In float64 each strategy feeds back its own tokens; in other dtypes
      it is fed the float64 reference's, so that a near-tie does not end the comparison.
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
        _, logits = greedy(config.replace(dtype=dtype), cast(drawn, dtype), tokens, lengths,
                           new_tokens, exact[0])  # fmt: skip
        own[dtype] = relative_error(logits, exact[1])
    results = []
    number, total = itertools.count(1), len(cases) * len(dtypes)
    for strategy, workload in cases:
        start, rows, same = time.perf_counter(), list[Exactness](), True
        for dtype in dtypes:
            on_progress(f"{next(number)} of {total}: {strategy.name} decoding in {dtype}")
            sharded = ShardedTransformer(config.replace(dtype=dtype), strategy, workload)
            forced = None if dtype == "float64" else exact[0]
            chosen, logits = decode(
                Decoder(sharded, new_tokens), cast(drawn, dtype), tokens, lengths, forced
            )
            if forced is None:
                same = bool((chosen == exact[0]).all())
            error = relative_error(logits, exact[1])
            rows.append(judge(dtype, error, None, own.get(dtype, 0.0)))
        results.append(
            Verification(
                model=config.name,
                devices=strategy.mesh.size,
                platform=jax.devices()[0].platform,
                workload=workload,
                text=text_name,
                logit_rms=float(np.sqrt(np.mean(np.square(exact[1])))),
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
    forced: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decode greedily with the unsharded model, without a KV cache.

    Args:
      config, state: the model and its parameters.
      tokens, lengths: prompts [B, L], padded at the end, and the prompt length per row [B].
      new_tokens: tokens per sequence, N.
      forced: [B, N] tokens to feed back instead of the chosen ones.

    Returns:
      Tokens [B, N] int32 and the logits [B, N, V] float64 they were chosen from.
    """
    graph, rows = abstract_transformer(config)[0], jnp.arange(len(tokens))
    whole = np.pad(tokens, ((0, 0), (0, new_tokens))).astype(np.int32)

    @jax.jit
    def run(state, whole):
        def one(whole, step_and_given):
            step, given = step_and_given
            logits = reference(nnx.merge(graph, state), whole)[0][rows, lengths + step - 1]
            chosen = logits.argmax(-1).astype(jnp.int32) if given is None else given
            return whole.at[rows, lengths + step].set(chosen), (chosen, logits)

        steps = jnp.arange(new_tokens, dtype=jnp.int32)
        return lax.scan(one, whole, (steps, None if forced is None else forced.T))[1]

    return _rows_first(run(state, whole))


def decode(
    decoder: Decoder,
    state: nnx.State,
    tokens: np.ndarray,
    lengths: np.ndarray,
    forced: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Decode like `greedy`, but under a strategy with its KV cache; `state` is unsharded."""
    sharded = decoder.sharded
    mesh = sharded.strategy.mesh.build(jax.devices()[: sharded.strategy.mesh.size])
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), sharded.specs)
    params = jax.jit(sharded.shard, out_shardings=shardings)(state)
    prefill, step = decoder.prefill(mesh), decoder.step(mesh)
    alike = functools.partial(
        lax.with_sharding_constraint, shardings=NamedSharding(mesh, PartitionSpec())
    )

    @jax.jit
    def run(params, tokens, lengths):
        def one(carry, given):
            cache, logits = carry
            chosen = logits.argmax(-1).astype(jnp.int32) if given is None else given
            cache, following = step(params, cache, chosen)
            return (cache, alike(following)), (chosen, logits)

        cache, logits = prefill(params, tokens, lengths)
        given = None if forced is None else forced.T
        return lax.scan(one, (cache, alike(logits)), given, length=decoder.new_tokens)[1]

    return _rows_first(run(params, tokens.astype(np.int32), lengths))


def _rows_first(found) -> tuple[np.ndarray, np.ndarray]:
    chosen, logits = jax.device_get(found)
    return chosen.T, np.swapaxes(np.asarray(logits, np.float64), 0, 1)
