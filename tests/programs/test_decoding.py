"""Decoding under every strategy: the unsharded model's tokens and logits, from its own cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from parallax.lenses.reference import reference
from parallax.lenses.text import read_text
from parallax.lenses.tolerance import FLOAT64_LIMIT, judge
from parallax.lenses.verify_decoding import decode, greedy
from parallax.lenses.verifying import cast, draw, relative_error
from parallax.models.transformer import abstract_transformer
from parallax.parallel import cached_attention as cached
from parallax.programs import cache, decoding
from parallax.programs.cache import batch_multiple, prompt_multiple
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import (
    cache_tiled,
    data_parallel,
    layerwise,
    ring_sequence,
    tensor_pipeline,
    two_level,
)
from parallax.workload import Workload
from tests.selection import in_full, often
from tests.strategies.cases import (
    EXPERTS,
    HYBRIDS,
    MIXTURES,
    SMALL,
    STRATEGIES,
    UNEQUAL,
    UNEQUAL_STAGES,
    VARIANTS,
    WITH_DENSE,
    WITH_EXPERTS,
)

pytestmark = pytest.mark.slow

LENGTHS = (5, 16, 9, 12)
NEW = 64
LONGEST = 32  # prompts are padded to this: what every strategy's devices divide


def prompts():
    """[4, LONGEST] bytes of real text, and how many of each row are prompt."""
    text = np.frombuffer(read_text(None, 4 * LONGEST)[0], np.uint8)[: 4 * LONGEST]
    lengths = np.array(LENGTHS, np.int32)
    tokens = text.reshape(4, LONGEST).astype(np.int32)
    return np.where(np.arange(LONGEST) < lengths[:, None], tokens, 0), lengths


drawn = functools.cache(draw)


@functools.cache
def unsharded(config):
    """Greedy decoding without a cache; and one long prefill's logits [4, NEW, V] there."""
    exact = greedy(config, drawn(config), *prompts(), NEW)
    return exact, long_prefill(config, drawn(config), exact.tokens)


def long_prefill(config, state, chosen):
    """Logits [4, NEW, V] of prompts and chosen tokens, all in one pass of the unsharded model."""
    tokens, lengths = prompts()
    whole = np.zeros((4, LONGEST + NEW), np.int32)
    whole[:, :LONGEST] = tokens
    for row, length in enumerate(lengths):
        whole[row, length : length + NEW] = chosen[row]
    graph = abstract_transformer(config)[0]
    long = jax.jit(lambda state: reference(nnx.merge(graph, state), jnp.asarray(whole))[0])(state)
    at = lengths[:, None] - 1 + np.arange(NEW)[None]
    return np.take_along_axis(np.asarray(long, np.float64), at[:, :, None], axis=1)


def decoded(config, strategy, batch=4, microbatches=1, forced=None, **options):
    """Decoding under a strategy; rows of a larger batch are the four prompts again and again."""
    tokens, lengths = repeated(prompts(), batch)
    assert LONGEST % prompt_multiple(strategy) == 0
    load = Workload(batch, LONGEST, microbatches, replayed=bool(forced and forced.expert_ids))
    sharded = ShardedTransformer(config, strategy, load)
    state = cast(drawn(config.replace(dtype="float64")), config.dtype)
    decoder = Decoder(sharded, NEW, **options)
    return decode(decoder, state, tokens, lengths, repeated(forced, batch))


def repeated(arrays, batch):
    return jax.tree.map(lambda x: np.resize(x, (batch, *x.shape[1:])), arrays)


def check(config, strategy, batch=4, **options):
    found = decoded(config, strategy, batch, **options)
    exact, long = repeated(unsharded(config), batch)
    np.testing.assert_array_equal(found.tokens, exact.tokens)
    assert relative_error(found.logits, exact.logits) < FLOAT64_LIMIT
    assert relative_error(found.logits, long) < FLOAT64_LIMIT


def test_the_reference_says_something():
    exact, long = unsharded(SMALL)
    assert len(np.unique(exact.tokens)) > 8
    assert 0.5 < np.sqrt(np.mean(np.square(exact.logits))) < 2
    assert relative_error(exact.logits, long) < FLOAT64_LIMIT


@functools.cache
def own_error(dtype):
    """Of the unsharded model's logits in a lower dtype, with the exact model's tokens going in."""
    exact, long = unsharded(SMALL)
    found = long_prefill(SMALL.replace(dtype=dtype), cast(drawn(SMALL), dtype), exact.tokens)
    return relative_error(found, long)


DENSE = STRATEGIES | VARIANTS


@often(
    DENSE, "tensor_pipeline", "ring_sequence", "data_parallel", "two_level", "layerwise", "scores",
    "tiled stages",
)  # fmt: skip
def test_decode(name):
    rows = DENSE[name].split("decode").count("act_batch")
    check(SMALL, DENSE[name], batch_multiple(DENSE[name]) if rows > 4 else 4)


# With 16 sequences the mesh axes of the sequence deal out the batch too; four stay together.
NORMED = SMALL.replace(qk_norm=True, num_kv_heads=4, mlp="gated")


@pytest.mark.exhaustive
@often(HYBRIDS, "pipeline x ring x tensor", "ulysses x ring")
def test_decode_hybrids_of_grouped_normed_heads(name):
    strategy = HYBRIDS[name]
    assert (
        Decoder(ShardedTransformer(NORMED, strategy, Workload(16, LONGEST)), NEW).layout.batch_axes
        == strategy.attention.seq_axes
    )
    check(NORMED, strategy, batch=16)


def test_decode_with_slots_for_our_kernels():
    """Slots come in eights; here, where they cannot run, XLA does their work."""
    strategy = tensor_pipeline(2, 2).replace(kernels="mosaic")
    sharded = ShardedTransformer(SMALL, strategy, Workload(4, LONGEST))
    assert Decoder(sharded, 3).slots == (LONGEST, 8)
    check(SMALL, strategy)


@pytest.mark.full
@often(WITH_EXPERTS, "colocated", "exchange")
def test_decode_with_experts(name):
    check(EXPERTS, WITH_EXPERTS[name], batch=16)


@functools.cache
def of_other_experts(config):
    """Greedy decoding with other experts than the routers choose: the next ones, in each place."""
    exact = unsharded(config)[0]
    forced = exact._replace(
        expert_ids=tuple((x + 1) % config.num_experts for x in exact.expert_ids)
    )
    return greedy(config, drawn(config), *prompts(), NEW, forced)


OF_EXPERTS = {n: (EXPERTS, s) for n, s in WITH_EXPERTS.items()} | {
    f"dense first {n}": (WITH_DENSE, MIXTURES[n]) for n in ("pipeline x tensor", "expert x fsdp")
}


@in_full(OF_EXPERTS, "exchange", "dense first pipeline x tensor")
def test_fixed_routing_is_that_of_every_token(name):
    config, strategy = OF_EXPERTS[name]
    forced, own = of_other_experts(config), unsharded(config)[0]
    assert relative_error(forced.logits, own.logits) > 1e-2
    found = decoded(config, strategy, batch=16, forced=forced)
    assert relative_error(found.logits, repeated(forced, 16).logits) < FLOAT64_LIMIT


@pytest.mark.exhaustive
@often(UNEQUAL_STAGES, "chosen")
def test_decode_on_stages_of_unequal_depth(name):
    check(UNEQUAL, UNEQUAL_STAGES[name], microbatches=2)


@pytest.mark.exhaustive
def test_decode_with_learned_positions_and_whole_key_heads():
    config = SMALL.replace(
        num_heads=16, num_kv_heads=2, head_dim=4, positions="learned", norm="layernorm",
        max_seq_len=LONGEST + NEW,
    )  # fmt: skip
    check(config, tensor_pipeline(8, 2), microbatches=4)
    check(config, two_level(4, 4))


@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.exhaustive)]
)
@often(("ring_sequence", "two_level", "tensor_pipeline"), "ring_sequence")
def test_lower_precision_by_the_table(name, dtype):
    exact = unsharded(SMALL)[0]
    config = SMALL.replace(dtype=dtype)
    found = decoded(config, STRATEGIES[name], forced=exact)
    error = relative_error(found.logits, exact.logits)
    assert judge(dtype, error, 0.0, reference_logits_error=own_error(dtype)).passed
    assert error > FLOAT64_LIMIT


def forget_a_device(patch):
    exact = cached._weigh

    def weigh(partial, m):
        kept = (lax.axis_index("seq") != 3).astype(m.dtype)
        return tuple(x * kept for x in exact(partial, m))

    patch.setattr(cached, "_weigh", weigh)
    return "ring_sequence"


def a_position_late(patch):
    exact = Decoder._prefill

    def prefill(self, state, *inputs, **platform):
        cache, logits = exact(self, state, *inputs, **platform)
        return cache._replace(positions=cache.positions + 1), logits

    patch.setattr(Decoder, "_prefill", prefill)
    return "tensor_pipeline"


def see_padding(patch):
    exact = decoding.slot_spans
    patch.setattr(
        decoding, "slot_spans", lambda runs, lengths, *new: exact(runs, 0 * lengths + LONGEST, *new)
    )
    return "layerwise"


def lose_the_last_key(patch):
    patch.setattr(cached, "slots_of", lambda tokens, devices: 1)
    patch.setattr(cache, "slots_of", lambda tokens, devices: 1)
    return "two_level"


@pytest.mark.parametrize(
    "mutate", [forget_a_device, a_position_late, see_padding, lose_the_last_key],
    ids=lambda m: m.__name__,
)  # fmt: skip
def test_mutations_are_seen(mutate, monkeypatch):
    name = mutate(monkeypatch)
    exact = unsharded(SMALL)[0]
    try:
        found = decoded(SMALL, STRATEGIES[name], forced=exact)
    finally:
        monkeypatch.undo()
    assert not relative_error(found.logits, exact.logits) < 1e-2


@pytest.mark.parametrize(
    ("config", "strategy", "load", "options", "message"),
    [
        (SMALL.replace(causal=False), ring_sequence(4), Workload(4, 32), {}, "not causal"),
        (SMALL, two_level(4, 4), Workload(4, 30), {}, "Pad them to a multiple of 4"),
        (SMALL, ring_sequence(4), Workload(4, 32, packed=True), {}, "packed"),
        (SMALL, ring_sequence(4), Workload(4, 32), {"new_tokens": 0}, "new_tokens"),
        (SMALL, layerwise(2), Workload(4, 32), {"microbatches": 3}, "3 microbatches"),
        (SMALL.replace(positions="learned", max_seq_len=40), ring_sequence(4), Workload(4, 32),
         {"new_tokens": 9}, "learned positions for, 40"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_is_refused(config, strategy, load, options, message):
    with pytest.raises(ValueError, match=message):
        Decoder(ShardedTransformer(config, strategy, load), **({"new_tokens": 4} | options))


@pytest.mark.parametrize(
    ("strategy", "microbatches", "options"),
    [
        (data_parallel(1), 4, decoding.ONE_ROW_OPTIONS),
        (data_parallel(1), 2, decoding.STEP_OPTIONS),
        # Products of a single row would write out every tile again: 2,537 GB for 94 in the record.
        (cache_tiled(data_parallel(1), 2, 2), 4, decoding.STEP_OPTIONS),
    ],
)
def test_a_single_row_s_products_are_no_sums_but_in_weight_tiles(strategy, microbatches, options):
    sharded = ShardedTransformer(SMALL, strategy, Workload(4, 32))
    decoder = Decoder(sharded, 4, microbatches=microbatches)
    assert decoder.step_options == {**strategy.compiler_options, **options}
