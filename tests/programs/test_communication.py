"""Closed forms equal the traced program's collectives: forward, and a training step."""

import dataclasses
from typing import Any, get_args

import jax
import jax.numpy as jnp
import pytest

from parallax.bounds import totals
from parallax.hlo.compare import differing_totals
from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.parallel.remat import Remat
from parallax.parallel.schedules import SCHEDULES
from parallax.programs.cache import batch_multiple
from parallax.programs.communication import decode_transfers, forward_transfers
from parallax.programs.decoding import Decoder
from parallax.programs.gradient_sums import different_work
from parallax.programs.schedule_branches import training_branches
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.train_communication import train_transfers
from parallax.programs.training import TrainStep
from parallax.strategies import (
    expert_parallel,
    layerwise,
    ring_sequence,
    shard_weights,
    tensor_pipeline,
    two_level,
)
from parallax.workload import Workload
from tests.selection import in_turns
from tests.strategies.cases import (
    EXPERTS,
    GQA_FULL,
    HYBRIDS,
    KINDS,
    LATENT,
    LATENT_MIXTURE,
    LATENTS,
    MIXTURE,
    MIXTURES,
    OTHERS,
    SHARDED,
    SHARDED_EXPERTS,
    SMALL,
    STRATEGIES,
    TILE,
    UNEQUAL,
    UNEQUAL_STAGES,
    VARIANTS,
    WITH_DENSE,
    WITH_EXPERTS,
    workload,
)

DENSE = SMALL.replace(dtype="float32")
CASES = {
    **{name: (DENSE, s) for name, s in (STRATEGIES | VARIANTS | HYBRIDS).items()},
    **{f"experts {n}": (EXPERTS.replace(dtype="float32"), s) for n, s in WITH_EXPERTS.items()},
    **{name: (DENSE.replace(bias=True), s) for name, s in SHARDED.items()},
    **{f"experts {n}": (EXPERTS.replace(dtype="float32"), s) for n, s in SHARDED_EXPERTS.items()},
    **{f"mixture {n}": (MIXTURE.replace(dtype="float32"), s) for n, s in MIXTURES.items()},
    **{
        f"dense first {n}": (WITH_DENSE.replace(dtype="float32"), MIXTURES[n])
        for n in ("expert x fsdp", "pipeline x tensor", "sequence-parallel norms")
    },
    **{
        f"kinds {n}": (KINDS.replace(dtype="float32"), (STRATEGIES | VARIANTS | SHARDED)[n])
        for n in ("tensor_pipeline", "scores", "ring x fsdp")
    },
    "kinds natural ring": (KINDS.replace(dtype="float32"), ring_sequence(16, order="natural")),
    **{
        f"others {n}": (OTHERS.replace(dtype="float32", bias=True), (STRATEGIES | SHARDED)[n])
        for n in ("tensor_pipeline", "ring x fsdp")
    },
    **{f"latent {n}": (LATENT.replace(dtype="float32"), s) for n, s in LATENTS.items()},
    "latent mixture": (
        LATENT_MIXTURE.replace(dtype="float32"), MIXTURES["expert x fsdp"],
    ),
    "learned positions": (
        GQA_FULL.replace(dtype="float32", max_seq_len=128, causal=True),
        shard_weights(ring_sequence(8), "seq"),
    ),
    **{f"stages {n}": (UNEQUAL.replace(dtype="float32"), s) for n, s in UNEQUAL_STAGES.items()},
    "sequence-parallel norms": (DENSE, tensor_pipeline(4, 2, sequence_parallel_norms=True)),
    "whole key/value heads": (
        DENSE.replace(num_kv_heads=2), tensor_pipeline(8, 2),
    ),
    "normed heads": (DENSE.replace(qk_norm=True), two_level(4, 4)),
    "capacity": (
        EXPERTS.replace(dtype="float32"), expert_parallel(16, tile=TILE, capacity_factor=1.25),
    ),
    "lockstep": (DENSE, layerwise(2, handoff="lockstep")),
}  # fmt: skip


def by_kind(transfers):
    found = {}
    for t in transfers:
        found[t.kind, t.axes] = found.get((t.kind, t.axes), 0.0) + t.wire_bytes
    return found


def traced_step(decoder):
    sharded = decoder.sharded
    mesh = sharded.strategy.mesh.build(jax.devices()[: sharded.strategy.mesh.size])
    tokens = jax.ShapeDtypeStruct(
        (sharded.workload.batch,), jnp.int32, sharding=decoder.token_sharding(mesh)
    )
    arguments = sharded.abstract_state(mesh), decoder.abstract_cache(mesh), tokens
    step = jax.jit(decoder.step(mesh))
    return jaxpr_ledger(step.trace(*arguments).jaxpr, sharded.strategy.mesh_axes)


@pytest.mark.parametrize("batch", [16, 1], ids=["batch over the sequence's devices", "one"])
@pytest.mark.parametrize("name", in_turns(CASES, 4))
def test_decoding_steps_equal_their_closed_forms(name, batch):
    config, strategy = CASES[name]
    batch = max(batch, batch_multiple(strategy))
    sharded = ShardedTransformer(config, strategy, Workload(batch, 80 + 16))
    decoder = Decoder(sharded, new_tokens=20)
    expected = decode_transfers(decoder, platform="cpu")
    found = traced_step(decoder).by_kind_and_axes()
    assert not differing_totals(by_kind(expected), found)
    sent, minimum = totals(expected)
    assert 0 <= minimum <= sent


def traced(config, strategy, load, remat):
    program = ShardedTransformer(config, strategy, load)
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    function, branches = program.forward(mesh), {}
    if remat is not None:
        branches = training_branches(program)
        step = TrainStep(program, remat=remat)
        function, program = step.step(mesh), step
    state = program.abstract_state(mesh)
    arguments = state, *ShardedTransformer(config, strategy, load).abstract_inputs(mesh)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes them
        jaxpr = jax.jit(function).trace(*arguments).jaxpr
    return jaxpr_ledger(jaxpr, strategy.mesh_axes, trips=branches).by_kind_and_axes()


@pytest.mark.parametrize("remat", [None, "layer"], ids=["forward", "train"])
@pytest.mark.parametrize("name", in_turns(CASES, 4))
def test_closed_form_is_the_traced_program(name, remat):
    config, strategy = CASES[name]
    load = workload(strategy)
    if remat is None:
        expected = forward_transfers(config, strategy, load, platform="cpu")
    else:
        expected = train_transfers(config, strategy, load, remat, 4, platform="cpu")
    assert differing_totals(by_kind(expected), traced(config, strategy, load, remat)) == ()
    sent, minimum = totals(expected)
    assert minimum <= sent


@pytest.mark.parametrize("remat", in_turns(get_args(Remat), 3))
@pytest.mark.parametrize(
    "name",
    [
        "tensor_pipeline",
        "ring_sequence",
        "two_level",
        "experts by node",
        "fsdp",
        "experts data x expert x fsdp",
        "mixture expert x fsdp",
    ],
)
def test_what_is_recomputed_is_sent_again(name, remat):
    config, strategy = CASES[name]
    load = workload(strategy)
    expected = train_transfers(config, strategy, load, remat, 4, platform="cpu")
    assert differing_totals(by_kind(expected), traced(config, strategy, load, remat)) == ()


def test_gradients_of_replicated_weights_are_summed_once_by_hand():
    found = {t.what: t for t in train_transfers(DENSE, STRATEGIES["data_parallel"],
                                                workload(STRATEGIES["data_parallel"]))}  # fmt: skip
    assert found["gradients over data"].count == 1
    assert found["gradients over data"].wire_bytes == 2 * 15 / 16 * 4 * DENSE.num_params
    assert set(found) == {"gradients over data", "mean loss"}


def test_a_parameter_of_an_unknown_place_is_named():
    with pytest.raises(LookupError, match=r"layers\.adapter\.up_DF.*Add it to _DIFFERENT_WORK"):
        different_work(("layers", "adapter", "up_DF"), tensor_pipeline(4, 2).split())


@pytest.mark.parametrize("remat", ["none", "layer"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["pipeline x fsdp", "pipeline x ring", "tensor_pipeline"])
def test_every_schedule_has_its_closed_form(name, schedule, remat):
    config, strategy = CASES[name]
    pipeline: Any = strategy.layers
    stages = strategy.split().count("layers")
    chunks = 2 if schedule == "interleaved" else 1
    config = config.replace(num_layers=2 * chunks * stages)
    strategy = dataclasses.replace(
        strategy,
        layers=dataclasses.replace(pipeline, schedule=schedule, virtual_stages=chunks),
    )
    load = workload(strategy)
    expected = train_transfers(config, strategy, load, remat, 4, platform="cpu")
    assert differing_totals(by_kind(expected), traced(config, strategy, load, remat)) == ()
