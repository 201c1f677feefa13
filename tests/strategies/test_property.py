"""Any legal config under any hybrid is exact; an illegal one says why before anything compiles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from parallax.hlo.compare import differing_totals
from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.lenses.reference import reference
from parallax.lenses.verifying import relative_error
from parallax.models.config import ModelConfig
from parallax.models.transformer import Transformer
from parallax.programs.communication import forward_transfers
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import (
    data_parallel,
    expert_parallel,
    hybrid,
    layerwise,
    ring_sequence,
    tensor_pipeline,
    two_level,
    ulysses,
)
from parallax.workload import Workload
from tests.programs.test_communication import by_kind
from tests.selection import often

pytestmark = pytest.mark.slow

DEVICES = 16
SIZES = st.sampled_from([1, 2, 3, 4])


def made(sizes, seq, exchange):
    """A hybrid of everything with a size above 1."""
    parts = {
        "data": data_parallel,
        "stage": layerwise,
        "tensor": functools.partial(tensor_pipeline, stage=1),
        "expert": functools.partial(expert_parallel, tile=4, exchange=exchange, chunks=2),
        "slices": lambda n: two_level(1, n),
        "groups": lambda n: two_level(n, 1),
        "seq": lambda n: ulysses(n) if seq == "ulysses" else ring_sequence(n, order=seq),
    }
    chosen = [parts[axis](n) for axis, n in sizes.items() if n > 1]
    return hybrid(*chosen) if chosen else data_parallel(1)


@st.composite
def programs(draw):
    """Sizes that often fit and often do not."""
    axes = draw(st.lists(
        st.sampled_from(["data", "stage", "tensor", "expert", "slices", "groups", "seq"]),
        min_size=1, max_size=3, unique=True,
    ))  # fmt: skip
    sizes = {axis: draw(SIZES) for axis in axes}
    if {"slices", "groups"} <= set(axes):
        sizes.pop("groups")
    heads = draw(st.sampled_from([2, 3, 4, 8]))
    config = ModelConfig(
        name="drawn", num_layers=draw(st.integers(1, 3)), d_model=24, num_heads=heads,
        num_kv_heads=draw(st.sampled_from([n for n in (1, 2, 4, heads) if heads % n == 0])),
        head_dim=draw(st.sampled_from([4, 8])), d_ff=24, vocab_size=48, dtype="float64",
        mlp=draw(st.sampled_from(["gelu", "gated"])), causal=draw(st.booleans()),
        num_experts=draw(st.sampled_from([0, 4, 6])) if "expert" not in axes else 12,
        qk_norm=draw(st.booleans()), max_seq_len=24,
    )  # fmt: skip
    workload = Workload(
        draw(st.sampled_from([2, 4, 6, 12])), draw(st.sampled_from([6, 12, 24])),
        draw(st.sampled_from([1, 2, 3])),
    )  # fmt: skip
    seq = draw(st.sampled_from(["natural", "zigzag", "ulysses"]))
    return sizes, seq, draw(st.sampled_from(["dense", "ragged"])), config, workload


BASE = ModelConfig(
    name="legal", num_layers=2, d_model=24, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=24,
    vocab_size=48, dtype="float64", max_seq_len=24,
)  # fmt: skip
# Must be legal: what users combine.
LEGAL = {
    "everything at once": ({"data": 2, "stage": 2, "tensor": 2}, "natural", "dense", BASE,
                           Workload(4, 12, 2)),
    "slices in a ring": ({"slices": 2, "seq": 3}, "zigzag", "dense", BASE, Workload(2, 12, 2)),
    "experts in stages": ({"stage": 2, "expert": 3}, "natural", "ragged",
                          BASE.replace(num_experts=12, mlp="gated"), Workload(6, 6, 2)),
    "ulysses in groups": ({"groups": 2, "seq": 2}, "ulysses", "dense", BASE, Workload(2, 6, 1)),
    "three stages of two and one layers": ({"stage": 2}, "natural", "dense",
                                           BASE.replace(num_layers=3), Workload(6, 6, 3)),
}  # fmt: skip


def built(sizes, seq, exchange, config, workload):
    """(strategy, program, its mesh, its forward function traced). ValueError where illegal."""
    strategy = made(sizes, seq, exchange)
    program = ShardedTransformer(config, strategy, workload)
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    traced = jax.jit(program.forward(mesh, "all")).trace(
        program.abstract_state(mesh), *program.abstract_inputs(mesh)
    )
    return strategy, program, mesh, traced


def check_exact(sizes, seq, exchange, config, workload):
    strategy, program, mesh, traced = built(sizes, seq, exchange, config, workload)
    ledger = jaxpr_ledger(
        jax.jit(program.forward(mesh)).trace(
            program.abstract_state(mesh), *program.abstract_inputs(mesh)
        ).jaxpr, strategy.mesh_axes,
    )  # fmt: skip
    expected = forward_transfers(config, strategy, workload, platform="cpu")
    assert differing_totals(by_kind(expected), ledger.by_kind_and_axes()) == ()
    with nnx.use_eager_sharding(False):
        model = Transformer(config, rngs=nnx.Rngs(params=0))
    tokens = jnp.asarray(
        np.random.default_rng(0).integers(0, 48, (workload.batch, workload.seq_len)), jnp.int32
    )
    exact = jax.jit(lambda state: reference(nnx.merge(nnx.split(model)[0], state), tokens)[0])(
        nnx.split(model)[1]
    )
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), program.specs)
    state = jax.device_put(program.shard(nnx.split(model)[1]), shardings)
    found = traced.lower().compile()(
        state, jax.device_put(tokens, NamedSharding(mesh, program._input_specs[0]))
    )
    assert relative_error(np.asarray(found), np.asarray(exact)) <= 1e-11


@pytest.mark.full
@often(LEGAL, "everything at once", "slices in a ring", "experts in stages")
def test_what_users_combine_is_legal_and_exact(name):
    check_exact(*LEGAL[name])


@pytest.mark.exhaustive
@settings(max_examples=6)
@given(programs())
def test_drawn_programs_are_exact_or_say_why(drawn):
    if np.prod(list(drawn[0].values())) > DEVICES:
        return
    try:
        built(*drawn)
    except ValueError as error:
        assert_says_why(str(error))
    else:
        check_exact(*drawn)


@settings(max_examples=30)
@given(programs())
@example(({"stage": 4}, "natural", "dense", BASE, Workload(4, 12, 2)))
@example(({"seq": 4}, "ulysses", "dense", BASE.replace(num_heads=3, num_kv_heads=3),
          Workload(4, 12, 2)))  # fmt: skip
@example(({"slices": 4}, "natural", "dense", BASE, Workload(4, 12, 2)))
def test_illegal_programs_say_why_before_they_compile(drawn):
    if np.prod(list(drawn[0].values())) > DEVICES:
        return
    try:
        built(*drawn)
    except ValueError as error:
        assert_says_why(str(error))


def assert_says_why(message):
    """Where, what and a next step, in words of ours."""
    assert any(where in message for where in
               ("Strategy '", "Model '", "ModelConfig '", "HeadSlices", "Ulysses", "Ring", "hybrid",
                "Pipeline", "Split", "ExchangeExperts", "RoPE")), message  # fmt: skip
    assert any(step in message for step in ("Use ", "Make ", "Split ", "Combine ", "map ")), message
