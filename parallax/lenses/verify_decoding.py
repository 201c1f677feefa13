"""The verify lens for decoding: greedy tokens and their logits against the unsharded model's.

The reference has no KV cache: it runs the whole sequences again for every token.
"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.stages import Compiled, Lowered

from parallax.lenses.ahead import compiled_ahead
from parallax.lenses.child import Progress
from parallax.lenses.reference import reference
from parallax.lenses.text import byte_tokens
from parallax.lenses.tolerance import judge
from parallax.lenses.verifying import draw, placed, relative_error
from parallax.models.config import ModelConfig
from parallax.models.transformer import abstract_transformer
from parallax.models.weights import cast
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer, input_shapes
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
    is_prompt = np.arange(first.seq_len) < lengths[:, None]
    tokens = np.where(is_prompt, tokens, 0).astype(np.int32)
    lowest = next((d for d in dtypes if d != "float64"), "float64")
    drawn = draw(config.replace(dtype=lowest))
    states = {d: functools.partial(cast, drawn, d) for d in ("float64", *dtypes)}
    given = dict.fromkeys(states, _given_shapes(config, first, new_tokens)) | {"float64": None}
    steps = [
        _unsharded(config.replace(dtype=d), state, new_tokens, given[d])
        for d, state in states.items()
    ]
    for strategy, workload in cases:
        for dtype in dtypes:
            load = replace(workload, replayed=bool(config.num_experts and given[dtype]))
            sharded = ShardedTransformer(config.replace(dtype=dtype), strategy, load)
            steps.append(_sharded(Decoder(sharded, new_tokens), states[dtype], given[dtype]))
    found = _run(steps, tokens, lengths)
    on_progress("unsharded model in float64")
    exact, own = next(found), {}
    for dtype in list(states)[1:]:
        on_progress(f"unsharded model in {dtype}")
        own[dtype] = relative_error(next(found).logits, exact.logits)
    results = []
    number, total = itertools.count(1), len(cases) * len(dtypes)
    for strategy, workload in cases:
        start, rows, same = time.perf_counter(), list[Exactness](), True
        for dtype in dtypes:
            on_progress(f"{next(number)} of {total}: {strategy.name} decoding in {dtype}")
            mine = next(found)
            if dtype == "float64":
                same = bool((mine.tokens == exact.tokens).all())
            error = relative_error(mine.logits, exact.logits)
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


class _Step(NamedTuple):
    """One program that decodes: (state, tokens, lengths, given) -> tokens, logits, choices.

    Attributes:
      function: the jitted program; results have new tokens first.
      state: shapes of its state. place: makes it.
      given: shapes of the tokens and choices it is given (`_given_shapes`); None: it makes its own.
    """

    function: Any
    state: nnx.State
    place: Callable[[], nnx.State]
    given: Any

    def lower(self, tokens: np.ndarray, lengths: np.ndarray) -> Lowered:
        return self.function.lower(self.state, tokens, lengths, self.given)

    def run(
        self, program: Compiled, tokens: np.ndarray, lengths: np.ndarray, exact: Decoded | None
    ) -> Decoded:
        given = None
        if self.given is not None:
            assert exact is not None, "the float64 model comes first"
            given = exact.tokens, exact.expert_ids if self.given[1] else ()
        chosen, logits, ids = jax.device_get(program(self.place(), tokens, lengths, given))
        return Decoded(chosen.T, np.swapaxes(np.asarray(logits, np.float64), 0, 1), ids)


def _run(steps: Sequence[_Step], tokens: np.ndarray, lengths: np.ndarray) -> Iterator[Decoded]:
    """Run the steps in order; the first is the float64 model, whose choices others are given."""
    exact = None
    lower = [functools.partial(step.lower, tokens, lengths) for step in steps]
    with contextlib.closing(compiled_ahead(lower)) as programs:
        for step, program in zip(steps, programs, strict=True):
            found = step.run(program, tokens, lengths, exact)
            exact = exact or found
            yield found


def _given_shapes(config: ModelConfig, workload: Workload, new_tokens: int) -> tuple[Any, Any]:
    """Return the shapes of `Decoded.tokens` and `Decoded.expert_ids`."""
    whole = replace(
        workload, seq_len=workload.seq_len + new_tokens, packed=False,
        replayed=bool(config.num_experts),
    )  # fmt: skip
    _, *ids = input_shapes(config, whole)
    return jax.ShapeDtypeStruct((workload.batch, new_tokens), jnp.int32), tuple(ids)


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
    given = None if forced is None else (forced.tokens, forced.expert_ids)
    step = _unsharded(config, lambda: state, new_tokens, given)
    return step.run(step.lower(tokens, lengths).compile(), tokens, lengths, forced)


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
    given = None if forced is None else (forced.tokens, forced.expert_ids)
    step = _sharded(decoder, lambda: state, given)
    return step.run(step.lower(tokens, lengths).compile(), tokens, lengths, forced)


def _unsharded(
    config: ModelConfig, state: Callable[[], nnx.State], new_tokens: int, given: Any
) -> _Step:
    graph = abstract_transformer(config)[0]

    @jax.jit
    def run(state, tokens, lengths, given):
        model, rows = nnx.merge(graph, state), jnp.arange(len(tokens))
        whole = jnp.pad(tokens, ((0, 0), (0, new_tokens)))
        tokens_BN, expert_ids = (None, ()) if given is None else given

        def one(whole, step_and_given):
            step, given = step_and_given
            logits, routing = reference(model, whole, None, *expert_ids)
            logits = logits[rows, lengths + step - 1]
            chosen = logits.argmax(-1).astype(jnp.int32) if given is None else given
            return whole.at[rows, lengths + step].set(chosen), (chosen, logits, routing[1:])

        steps = jnp.arange(new_tokens, dtype=jnp.int32)
        of_steps = steps, None if tokens_BN is None else tokens_BN.T
        chosen, logits, routing = lax.scan(one, whole, of_steps)[1]
        return chosen, logits, tuple(ids[-1] for ids in routing)

    return _Step(run, jax.eval_shape(state), state, given)


def _sharded(decoder: Decoder, state: Callable[[], nnx.State], given: Any) -> _Step:
    sharded = decoder.sharded
    mesh = sharded.strategy.mesh.build(jax.devices()[: sharded.strategy.mesh.size])
    prefill, step = decoder.prefill(mesh), decoder.step(mesh)
    alike = functools.partial(
        lax.with_sharding_constraint, shardings=NamedSharding(mesh, PartitionSpec())
    )

    @jax.jit
    def run(params, tokens, lengths, given):
        tokens_BN, ids = (None, ()) if given is None else given
        # What a new token is given is at its place in the whole sequence.
        at = lengths[:, None] + jnp.arange(decoder.new_tokens, dtype=jnp.int32)[None]
        of_new = (jnp.swapaxes(x[jnp.arange(len(x))[:, None], at], 0, 1) for x in ids)
        of_steps = None if tokens_BN is None else tokens_BN.T, *of_new

        def one(carry, given):
            cache, logits = carry
            forced, *ids = given
            chosen = logits.argmax(-1).astype(jnp.int32) if forced is None else forced
            cache, following = step(params, cache, chosen, *ids)
            return (cache, alike(following)), (chosen, logits)

        of_prompts = (x[:, : tokens.shape[1]] for x in ids)
        cache, logits = prefill(params, tokens, lengths, *of_prompts)
        first = cache, alike(logits)
        return *lax.scan(one, first, of_steps, length=decoder.new_tokens)[1], ()

    if given is not None and not decoder.workload.replayed:
        given = given[0], ()
    return _Step(run, sharded.abstract_state(mesh), lambda: placed(sharded, mesh, state()), given)
