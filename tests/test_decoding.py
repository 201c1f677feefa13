"""Decoding under every strategy: the unsharded model's tokens and logits, from its own cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding

from parallax import decoding
from parallax.decoding import Decoder, batch_multiple, prompt_multiple
from parallax.lenses.reference import reference
from parallax.lenses.text import read_text
from parallax.lenses.tolerance import FLOAT64_LIMIT, judge
from parallax.lenses.verifying import relative_error
from parallax.parallel import cached_attention as cached
from parallax.spmd import ShardedTransformer, abstract_transformer
from parallax.strategies import layerwise, ring_sequence, tensor_pipeline, two_level
from parallax.workload import Workload
from tests.strategies.cases import (
    EXPERTS,
    HYBRIDS,
    SMALL,
    STRATEGIES,
    UNEQUAL,
    UNEQUAL_STAGES,
    VARIANTS,
    WITH_EXPERTS,
)

LENGTHS = (5, 16, 9, 12)
NEW = 64
LONGEST = 32  # prompts are padded to this: what every strategy's devices divide


def prompts():
    """[4, LONGEST] bytes of real text, and how many of each row are prompt."""
    text = np.frombuffer(read_text(None, 4 * LONGEST)[0], np.uint8)[: 4 * LONGEST]
    lengths = np.array(LENGTHS, np.int32)
    tokens = text.reshape(4, LONGEST).astype(np.int32)
    return np.where(np.arange(LONGEST) < lengths[:, None], tokens, 0), lengths


@functools.cache
def drawn(config):
    from parallax.models.transformer import Transformer

    with nnx.use_eager_sharding(False):
        return nnx.split(Transformer(config, rngs=nnx.Rngs(params=0)))[1]


@functools.cache
def unsharded(config):
    """Greedy tokens [4, NEW] and their logits [4, NEW, V], without a cache; all of one long
    prefill's logits at the same places."""
    graph = abstract_transformer(config)[0]
    tokens, lengths = prompts()
    whole = np.zeros((4, LONGEST + NEW), np.int32)
    whole[:, :LONGEST] = tokens
    rows = jnp.arange(4)

    @jax.jit
    def run(state, whole):
        def one(whole, step):
            logits = reference(nnx.merge(graph, state), whole)[0]
            logits = logits[rows, lengths + step - 1]
            chosen = logits.argmax(-1).astype(jnp.int32)
            return whole.at[rows, lengths + step].set(chosen), (chosen, logits)

        whole, (chosen, logits) = lax.scan(one, whole, jnp.arange(NEW, dtype=jnp.int32))
        long = reference(nnx.merge(graph, state), whole)[0]
        at = lengths[:, None] - 1 + jnp.arange(NEW, dtype=jnp.int32)[None]
        return chosen, logits, jnp.take_along_axis(long, at[:, :, None], axis=1)

    chosen, logits, long = jax.device_get(run(drawn(config), whole))
    return chosen.T, np.swapaxes(logits, 0, 1), long


def decode(config, strategy, batch=4, microbatches=1, forced=None, check_cache=True, **options):
    """Greedy tokens [B, NEW] and logits [B, NEW, V] under a strategy; rows of a larger batch are
    the four prompts again and again. With `forced` [B, NEW] these tokens go in instead."""
    tokens, lengths = (np.resize(x, (batch, *x.shape[1:])) for x in prompts())
    assert LONGEST % prompt_multiple(strategy) == 0
    sharded = ShardedTransformer(config, strategy, Workload(batch, LONGEST, microbatches))
    decoder = Decoder(sharded, NEW, **options)
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), sharded.specs)
    state = jax.tree.map(lambda x: x.astype(config.dtype), drawn(config.replace(dtype="float64")))
    params = jax.jit(sharded.place, out_shardings=shardings)(state)
    prefill, step = decoder.prefill(mesh), decoder.step(mesh)

    @jax.jit
    def run(params, tokens, lengths):
        def one(carry, given):
            cache, logits = carry
            chosen = logits.argmax(-1).astype(jnp.int32) if given is None else given
            # The first logits come from the prefill, sharded as a batch of prompts is.
            cache, following = step(params, cache, chosen)
            return (cache, lax.with_sharding_constraint(following, where)), (chosen, logits)

        cache, logits = prefill(params, tokens, lengths)
        where = NamedSharding(mesh, jax.sharding.PartitionSpec())
        carry = cache, lax.with_sharding_constraint(logits, where)
        (cache, _), found = lax.scan(one, carry, None if forced is None else forced.T, length=NEW)
        return cache, found

    cache, (chosen, logits) = jax.device_get(run(params, tokens, lengths))
    if check_cache:
        assert cache.steps == NEW
        assert (cache.positions == lengths + NEW).all()
        assert (cache.seen.sum(1) == lengths + NEW).all()
    return chosen.T, np.swapaxes(logits, 0, 1)


def check(config, strategy, batch=4, **options):
    chosen, logits = decode(config, strategy, batch, **options)
    exact = [np.resize(x, (batch, *x.shape[1:])) for x in unsharded(config)]
    np.testing.assert_array_equal(chosen, exact[0])
    assert relative_error(logits, exact[1]) < FLOAT64_LIMIT
    assert relative_error(logits, exact[2]) < FLOAT64_LIMIT


def test_the_reference_says_something():
    chosen, logits, long = unsharded(SMALL)
    assert len(np.unique(chosen)) > 8
    assert 0.5 < np.sqrt(np.mean(np.square(logits))) < 2
    assert relative_error(logits, long) < FLOAT64_LIMIT


@functools.cache
def own_error(dtype):
    """Of the unsharded model's logits in a lower dtype, with the exact model's tokens going in."""
    graph = abstract_transformer(SMALL.replace(dtype=dtype))[0]
    tokens, lengths = prompts()
    chosen, _, exact = unsharded(SMALL)
    whole = np.zeros((4, LONGEST + NEW), np.int32)
    whole[:, :LONGEST] = tokens
    for row, length in enumerate(lengths):
        whole[row, length : length + NEW] = chosen[row]
    state = jax.tree.map(lambda x: x.astype(dtype), drawn(SMALL))
    long = jax.jit(lambda state: reference(nnx.merge(graph, state), whole)[0])(state)
    at = lengths[:, None] - 1 + np.arange(NEW)[None]
    found = np.take_along_axis(np.asarray(long, np.float64), at[:, :, None], axis=1)
    return relative_error(found, exact)


DENSE = STRATEGIES | VARIANTS


@pytest.mark.parametrize("name", DENSE)
def test_decode(name):
    check(SMALL, DENSE[name], batch_multiple(DENSE[name]) if "data" in name else 4)


# With 16 sequences the mesh axes of the sequence deal out the batch too; four stay together.
NORMED = SMALL.replace(qk_norm=True, num_kv_heads=4, mlp="gated")


@pytest.mark.parametrize("name", HYBRIDS)
def test_decode_hybrids_of_grouped_normed_heads(name):
    strategy = HYBRIDS[name]
    assert (
        Decoder(ShardedTransformer(NORMED, strategy, Workload(16, LONGEST)), NEW).layout.batch_axes
        == strategy.attention.seq_axes
    )
    check(NORMED, strategy, batch=16)


@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_decode_with_experts(name):
    check(EXPERTS, WITH_EXPERTS[name], batch=16)


@pytest.mark.parametrize("name", UNEQUAL_STAGES)
def test_decode_on_stages_of_unequal_depth(name):
    check(UNEQUAL, UNEQUAL_STAGES[name], microbatches=2)


def test_decode_with_learned_positions_and_whole_key_heads():
    config = SMALL.replace(
        num_heads=16, num_kv_heads=2, head_dim=4, positions="learned", norm="layernorm",
        max_seq_len=LONGEST + NEW,
    )  # fmt: skip
    check(config, tensor_pipeline(8, 2, split_kv_heads=False), microbatches=4)
    check(config, two_level(4, 4, split_kv_heads=False))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["ring_sequence", "two_level", "tensor_pipeline"])
def test_lower_precision_by_the_table(name, dtype):
    exact = unsharded(SMALL)
    config = SMALL.replace(dtype=dtype)
    _, logits = decode(config, STRATEGIES[name], forced=exact[0])
    error = relative_error(np.asarray(logits, np.float64), exact[1])
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

    def prefill(self, state, tokens, lengths, **platform):
        cache, logits = exact(self, state, tokens, lengths, **platform)
        return cache._replace(positions=cache.positions + 1), logits

    patch.setattr(Decoder, "_prefill", prefill)
    return "tensor_pipeline"


def see_padding(patch):
    exact = Decoder._prefill

    def prefill(self, state, tokens, lengths, **platform):
        cache, logits = exact(self, state, tokens, lengths, **platform)
        prompt = jnp.arange(cache.seen.shape[1])[None] < self.slots[0]
        return cache._replace(seen=cache.seen | prompt), logits

    patch.setattr(Decoder, "_prefill", prefill)
    return "layerwise"


def lose_the_last_key(patch):
    patch.setattr(cached, "slots_of", lambda tokens, devices: 1)
    patch.setattr(decoding, "slots_of", lambda tokens, devices: 1)
    return "two_level"


@pytest.mark.parametrize(
    "mutate", [forget_a_device, a_position_late, see_padding, lose_the_last_key],
    ids=lambda m: m.__name__,
)  # fmt: skip
def test_mutations_are_seen(mutate, monkeypatch):
    name = mutate(monkeypatch)
    exact = unsharded(SMALL)
    try:
        _, logits = decode(SMALL, STRATEGIES[name], forced=exact[0], check_cache=False)
    finally:
        monkeypatch.undo()
    assert not relative_error(logits, exact[1]) < 1e-2


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
