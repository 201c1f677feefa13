"""Optimizers: their updates, their state's dtypes and shardings, and restoring it elsewhere."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import muon

import parallax as px
from parallax.codec import encode
from parallax.engine.checkpoint import Checkpoints
from parallax.engine.data import Batches, read_files
from parallax.engine.optimizer import OPTIMIZERS, Adamw, Lion, Muon, decayed
from parallax.engine.whole_state import named, whole
from parallax.models.transformer import abstract_transformer
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainStep
from parallax.strategies import data_parallel, fsdp, shard_optimizer, tensor_pipeline
from parallax.workload import Workload
from tests.engine.states import BATCH, CONFIG, SEQ_LEN, STRATEGIES, assert_same, batch, mesh_of
from tests.selection import often

EXPERTS = CONFIG.replace(num_layers=2, num_experts=4, experts_per_token=2, bias=False)
TENSOR, LAYERWISE = tensor_pipeline(2, 2), STRATEGIES["layerwise"]  # both pad the model
ZERO = shard_optimizer(data_parallel(2), "data")
RESTORED = {
    "adamw": (Adamw(1e-2, 0, moment_dtype="bfloat16"), TENSOR, ZERO),
    "lion": (Lion(1e-2, 0), LAYERWISE, fsdp(2)),
    "muon": (Muon(1e-2, 0), ZERO, LAYERWISE),
}


def step_of(strategy, optimizer, param_dtype="float64") -> TrainStep:
    sharded = ShardedTransformer(CONFIG, strategy, Workload(BATCH, SEQ_LEN))
    return TrainStep(sharded, optimizer, "none", param_dtype)


def random_like(shapes, seed) -> Any:
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape)), shapes)


def updated(optimizer, params, grads, steps=1):
    """The last update and state of an optimizer."""

    @jax.jit
    def run(params, grads):
        updates, state = None, optimizer.init(params)
        for _ in range(steps):
            updates, state = optimizer.update(grads, state, params)
        return updates, state

    return run(params, grads)


@pytest.mark.full
@often(RESTORED, "adamw", "muon")
def test_a_state_restores_under_another_strategy_and_goes_on(name, tmp_path):
    settings, *strategies = RESTORED[name]
    optimizer = settings.build(20)
    steps = [step_of(strategy, optimizer) for strategy in strategies]
    meshes = [mesh_of(strategy) for strategy in strategies]
    run, other = (
        jax.jit(step.step(mesh), out_shardings=(step.shardings(mesh), None))
        for step, mesh in zip(steps, meshes, strict=True)
    )
    state, _ = run(steps[0].init(jax.random.key(0), meshes[0]), batch(0))
    saved = {name: np.asarray(x) for name, x in named(whole(steps[0], state)).items()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, steps[0], state, {})
        found = checkpoints.restore(steps[1], meshes[1]).state
    assert_same({n: np.asarray(x) for n, x in named(whole(steps[1], found)).items()}, saved)
    moments = [x for n, x in saved.items() if "/mu/" in n or "/nu/" in n]
    assert {x.dtype.name for x in moments} == {"bfloat16" if name == "adamw" else "float64"}
    assert all(np.abs(x.astype(float)).max() > 0 for x in moments)
    for seed in (1, 2):  # the second loss is of parameters that the restored moments made
        (state, exact), (found, loss) = run(state, batch(seed)), other(found, batch(seed))
        assert abs(float(loss) / float(exact) - 1) < 1e-11


@pytest.mark.slow
def test_muon_takes_each_matrix_of_a_layer_on_its_own():
    params = random_like(abstract_transformer(EXPERTS)[1], 0)
    grads = random_like(params, 1)
    settings = Muon(0.5, 0, weight_decay=0.0, clip_norm=0)
    updates = updated(settings.build(20), params, grads)[0]["layers"]
    d = EXPERTS.d_model
    cases = {
        "heads are columns": ("attention", "q_DHK", (1,), (d, -1)),
        "heads are rows": ("attention", "out_HKD", (0,), (-1, d)),
        "one expert": ("mlp", "up_EDF", (1, 2), (d, -1)),
        "the router": ("mlp", "router_DE", (0,), (d, -1)),
    }
    for name, (part, weight, index, shape) in cases.items():
        matrix, found = (
            np.asarray(tree[part][weight][...])[index].reshape(shape)
            for tree in (grads["layers"], updates)
        )
        alone = muon(0.5, consistent_rms=0.2)
        expected = updated(alone, jnp.zeros(matrix.shape), jnp.asarray(matrix))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=name)
        sizes = np.linalg.svd(found, compute_uv=False)
        assert sizes.max() / sizes.min() < 2.5, name  # nearly orthogonal


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_decay_and_norms_and_biases_do_not(kind):
    params = random_like(abstract_transformer(CONFIG.replace(num_layers=1))[1], 0)
    settings = OPTIMIZERS[kind](0.5, 0, weight_decay=0.2)
    updates = updated(settings.build(20), params, jax.tree.map(jnp.zeros_like, params))[0]
    for decays, update, w in zip(
        *map(jax.tree.leaves, (decayed(params), updates, params)), strict=True
    ):
        np.testing.assert_allclose(update, -0.1 * w if decays else 0 * w, rtol=1e-9, atol=1e-15)


def test_narrow_moments_are_rounded_between_steps_and_nowhere_else():
    params = random_like(abstract_transformer(CONFIG.replace(num_layers=1))[1], 0)
    grads = random_like(params, 1)
    wide = Adamw(1e-2, 0).build(20)
    narrow = Adamw(1e-2, 0, moment_dtype="bfloat16").build(20)
    _, state = updated(narrow, params, grads)
    assert {x.dtype.name for x in jax.tree.leaves(state)} == {"bfloat16", "int32"}
    assert jax.tree.structure(state) == jax.tree.structure(wide.init(params))
    exact = updated(wide, params, grads)[1]
    rounded = jax.tree.map(lambda x, like: x.astype(like.dtype), state, exact)
    for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-8)
    found, _ = jax.jit(narrow.update)(grads, state, params)
    expected, _ = jax.jit(wide.update)(grads, rounded, params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def labelled(params):
    return jax.tree.map(lambda decays: "wide" if decays else "still", decayed(params))


CHAINS = {
    "masked": optax.chain(optax.masked(optax.adamw(1e-3), decayed), optax.ema(0.9)),
    "multi_transform": optax.multi_transform(
        {"wide": optax.sgd(1e-2, momentum=0.9), "still": optax.set_to_zero()}, labelled
    ),
    "injected": optax.inject_hyperparams(optax.lion)(learning_rate=1e-3),
    "muon": Muon(moment_dtype="bfloat16").build(20),
}


@pytest.mark.parametrize("name", CHAINS)
def test_moments_are_split_as_their_parameters(name):
    step, mesh = step_of(TENSOR, CHAINS[name]), mesh_of(TENSOR)
    shardings = step.shardings(mesh)
    params = {n.removesuffix("/value"): s for n, s in named(shardings.params).items()}
    moments = 0
    for path, sharding in named(shardings.opt_state).items():
        mine = [s for n, s in params.items() if f"/{n}/" in path]
        assert sharding == (mine[0] if mine else NamedSharding(mesh, P())), path
        moments += len(mine)
    assert moments >= 8
    assert jax.tree.structure(step.abstract_state(mesh)) == jax.tree.structure(shardings)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (optax.adafactor(1e-3), r"v_row/final_norm/scale has shape \[1\], and its parameter has"),
        (optax.flatten(optax.adam(1e-3)), r"0/mu has shape \[\d+\], and it belongs to no"),
    ],
)
def test_a_state_that_cannot_be_split_is_refused_by_name(chain, message):
    with pytest.raises(ValueError, match=message):
        step_of(TENSOR, chain).shardings(mesh_of(TENSOR))


@pytest.mark.slow
def test_any_chain_trains_and_resumes_only_with_its_own_state(tmp_path):
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 50)
    chain = optax.chain(optax.clip(1.0), optax.sgd(1e-2, momentum=0.9))

    def run(optimizer, steps, **options):
        how = {"batch": 2, "seq_len": 8, "param_dtype": "float64"} | options
        config = CONFIG.replace(num_layers=1, vocab_size=256)
        return px.train(
            config, [tmp_path / "a.txt"], tmp_path / "run", steps=steps, optimizer=optimizer, **how
        )

    run(chain, 2)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert set(first) == {"step", "loss", "grad_norm", "tokens_per_s"}
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["optimizer"]["repr"]
    assert "chain" in recorded
    assert "0x" not in recorded
    for optimizer, options, message in (
        (px.Adamw(), {}, r"opt_state/1/0/count missing, here int32 \[\]; .* more"),
        (chain, {"param_dtype": "float32"}, r"trace/final_norm/scale float64 \[32\], here float32"),
    ):
        with pytest.raises(ValueError, match=message):
            run(optimizer, 3, **options)
    assert run(chain, 3).first_step == 2


def test_settings_are_recorded_with_their_kind():
    assert encode(Lion(moment_dtype="bfloat16")) == {
        "kind": "lion", "learning_rate": 1e-4, "warmup_steps": 20, "final_share": 0.1,
        "weight_decay": 0.3, "clip_norm": 1.0, "b1": 0.9, "b2": 0.99, "moment_dtype": "bfloat16",
    }  # fmt: skip
    assert encode(Adamw())["kind"] == "adamw"


def test_batches_are_split_over_several_axes(tmp_path):
    np.arange(64, dtype="<u2").tofile(tmp_path / "a.bin")
    files = read_files([tmp_path / "a.bin"], 64)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4, 2), ("replica", "data", "tensor"))
    one = Mesh(np.array(jax.devices()[:1]), ("data",))
    split, whole = (
        next(Batches(files, 8, 4, 0, NamedSharding(m, P(axes, None))))
        for m, axes in ((mesh, ("replica", "data")), (one, None))
    )
    np.testing.assert_array_equal(split, whole)
    assert len(split.addressable_shards) == 16
    for shard in split.addressable_shards:
        assert shard.data.shape == (1, 4)
        np.testing.assert_array_equal(shard.data, np.asarray(whole)[shard.index])
