"""Weights and optimizer state sharded over devices: exact, and it shows where they are not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from parallax.lenses.verifying import draw
from parallax.parallel import gradients
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainStep
from parallax.strategies import (
    TrainingOptions,
    cache_tiled,
    data_parallel,
    fsdp,
    hsdp,
    shard_optimizer,
    shard_weights,
    tensor_pipeline,
)
from parallax.workload import Workload
from tests.selection import often, together
from tests.strategies.cases import (
    EXPERTS,
    GQA_FULL,
    SHARDED,
    SHARDED_EXPERTS,
    SMALL,
    UNEQUAL,
    workload,
)
from tests.strategies.test_exact import check, verify

pytestmark = pytest.mark.slow


@together(SHARDED, "zero-1", "ring x data x fsdp", "tensor x fsdp")
def test_sharding_is_exact(chosen):
    check(verify(SMALL.replace(num_kv_heads=4, bias=True), chosen, packed=True))


@pytest.mark.full
def test_tables_of_positions_and_shifts():
    check(verify(GQA_FULL, [SHARDED["fsdp by step"]]))


@pytest.mark.full
@together(SHARDED_EXPERTS, "data x expert x fsdp")
def test_experts(chosen):
    check(verify(EXPERTS, chosen))


@pytest.mark.exhaustive
def test_tied_tables_and_unequal_stages():
    strategy = SHARDED["pipeline x fsdp"]
    check(verify(UNEQUAL.replace(tie_embeddings=True, vocab_size=250), [strategy]))


def losses(config, strategy, optimizer, steps=6):
    """The losses of a few steps on their own batches."""
    load = workload(strategy, seq_len=32)
    train = TrainStep(ShardedTransformer(config, strategy, load), optimizer, param_dtype="float64")
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    with jax.numpy_dtype_promotion("standard"):
        state = train.start(jax.device_put(train.sharded.shard(draw(config))), mesh)
        shardings = train.shardings(mesh)
        step = jax.jit(train.step(mesh), donate_argnums=0, out_shardings=(shardings, None))
        found = []
        for number in range(steps):
            key = jax.random.key(number)
            shape, last = (load.batch, load.seq_len), config.vocab_size
            state, loss = step(state, jax.random.randint(key, shape, 0, last, jnp.int32))
            found.append(float(loss))
    held = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, shardings)
    assert all(jax.tree.leaves(held))
    return np.array(found), state


OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2))


@pytest.fixture(scope="module")
def on_one_device():
    """The losses of a model, made once."""
    return functools.cache(lambda config: losses(config, data_parallel(1), OPTIMIZER)[0])


@pytest.mark.exhaustive
@often(("hsdp x zero-1", "pipeline x fsdp", "expert x fsdp"), "pipeline x fsdp")
def test_six_steps_of_training(name, on_one_device):
    config = EXPERTS if name in SHARDED_EXPERTS else SMALL
    found, _ = losses(config, (SHARDED | SHARDED_EXPERTS)[name], OPTIMIZER)
    exact = on_one_device(config)
    assert exact[0] - exact[-1] > 0.01  # it learns
    assert np.abs(found / exact - 1).max() <= 1e-11


def test_state_is_sharded_further_than_parameters():
    strategy = shard_optimizer(data_parallel(8), "data")
    _, state = losses(SMALL, strategy, optax.adamw(1e-2), 1)
    shapes = [
        {x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(tree) if x.shape == (2, 64, 128)}
        for tree in state
    ]
    assert shapes == [{(2, 64, 128)}, {(2, 8, 128)}]


# Mutations: what the tests above would miss if they could not fail.


def broken_gather(x, axes, dim, tokens):
    """A gather that repeats this device's own shard."""
    for axis in reversed(axes):
        x = jnp.concatenate([x] * lax.axis_size(axis), dim)
    return x


def broken_scatter(x, axes, *, scatter_dimension, tiled):
    """A reduce-scatter that does not sum."""
    size = x.shape[scatter_dimension] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * size, size, scatter_dimension)


def errors_of(strategy):
    from parallax.lenses.verifying import verify_transformer
    from tests.strategies.test_exact import TEXT

    cases = [(strategy, Workload(16, 80, 2))]
    row = verify_transformer(SMALL, cases, TEXT, "text", ("float64",))[0].rows[0]
    assert row.gradients_error is not None
    return row.logits_error, row.gradients_error


def test_a_shard_that_is_not_gathered(monkeypatch):
    monkeypatch.setattr("parallax.parallel.split.gather_shards", broken_gather)
    assert errors_of(fsdp(8))[0] > 1e-2


def test_a_gradient_that_is_not_scattered(monkeypatch):
    monkeypatch.setattr("parallax.programs.gradient_sums.lax.psum_scatter", broken_scatter)
    logits, gradients = errors_of(shard_optimizer(data_parallel(8), "data"))
    assert logits < 1e-11
    assert gradients > 1e-2


def test_a_microbatch_that_is_differentiated_twice(monkeypatch):
    monkeypatch.setattr(
        gradients, "cut",
        lambda inputs, m: jax.tree.map(lambda x: jnp.repeat(x[: len(x) // m][None], m, 0), inputs),
    )  # fmt: skip
    assert errors_of(fsdp(8))[1] > 1e-2


# What is refused.


def test_only_axes_of_tokens_shard_weights():
    with pytest.raises(ValueError, match=r"shard weights \('embed'\) over mesh axes \('tensor',\)"):
        shard_weights(tensor_pipeline(4, 1), "tensor")
    with pytest.raises(ValueError, match="shard_weights=seq: mesh axis 'seq' does not split its"):
        TrainingOptions(shard_weights=("seq",)).apply(data_parallel(4))


def test_weight_tiles_gather_once_a_step():
    with pytest.raises(ValueError, match="weight tiles cannot gather sharded weights one by one"):
        cache_tiled(fsdp(4), 4, 2)


def test_axes_are_a_list_or_joined_by_commas():
    listed = TrainingOptions(shard_weights=("replica", "data"), shard_optimizer=["auto"])
    assert TrainingOptions("replica,data", shard_optimizer="auto").apply(hsdp(2, 4)) == (
        listed.apply(hsdp(2, 4))
    )


def test_what_changes_nothing_is_said():
    options = TrainingOptions("auto", schedule="1f1b")
    strategies = [options.apply(s) for s in (tensor_pipeline(4, 2), hsdp(2, 4))]
    options.check(strategies)  # each of them takes one
    assert [options.notes(s) for s in strategies] == [
        ("shard_weights=auto changes nothing here: nothing is sharded, as no mesh axis splits the "
         "tokens",),
        ("schedule=1f1b changes nothing here: there are no pipeline stages",),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="there are no pipeline stages in hsdp"):
        options.check(strategies[1:])


def test_auto_is_every_axis_of_tokens():
    strategy = TrainingOptions(shard_weights=("auto",)).apply(hsdp(2, 4))
    assert strategy.rules.table()["embed"] == ("replica", "data")
    assert TrainingOptions(shard_optimizer=("auto",)).apply(hsdp(2, 4)) == shard_optimizer(
        hsdp(2, 4), ("data", "replica")
    )
