"""User functions and modules: compiled for a cluster, verified, and refused with clear errors."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import parallax as px
from parallax.programs.user_module import ShardedModule
from parallax.rules import Rules
from parallax.strategy import Strategy
from parallax.workload import Workload

pytestmark = pytest.mark.slow


class Mini(nnx.Module):
    """A user module of few lines, with logical axes and nothing else of Parallax."""

    def __init__(self, rngs: nnx.Rngs):
        def matrix(rows, columns, names):
            value = jax.random.normal(rngs.params(), (rows, columns)) * rows**-0.5
            return nnx.Param(value, out_sharding=names)

        self.table = matrix(256, 64, (None, "embed"))
        self.up = matrix(64, 256, ("embed", "mlp"))
        self.down = matrix(256, 64, ("mlp", "embed"))

    def __call__(self, tokens):
        x = jnp.take(self.table[...], tokens, axis=0)
        return x + jax.nn.gelu(x @ self.up[...]) @ self.down[...]


def mini():
    return Mini(nnx.Rngs(params=0))


SPLITS = [px.strategies.tensor_pipeline(8, 1), px.strategies.ring_sequence(16)]


@pytest.mark.parametrize("strategy", SPLITS, ids=lambda s: s.name)
def test_a_user_module_is_verified(strategy):
    result = px.Program(mini, strategy).verify(batch=2, seq_len=64)
    assert result.exact
    assert result.devices == strategy.mesh.size


def test_a_user_module_compiles_and_says_who_chose_the_collectives(aot):
    program = px.Program(mini, px.strategies.ring_sequence(16))
    found = program.compile("h100_2x8", batch=8, seq_len=1024)
    assert "GSPMD" in found.partitioner
    assert "Ring" in found.partitioner  # the strategy's attention part is not silently dropped
    assert not found.has_closed_form
    tensor = px.Program(mini, px.strategies.tensor_pipeline(16, 1))
    found = tensor.compile("h100_2x8", batch=8, seq_len=1024)
    assert {(c.kind, c.axes) for c in found.collectives} == {("all-reduce", ("tensor",))}
    assert tensor.predict(found).bound.terms_s["compute"] > 0


def test_anyones_function_compiles(aot):
    x = jax.ShapeDtypeStruct((4096, 8192), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16)
    found = px.compile_for(
        "h100_2x8", lambda x, w: x @ w, x, w, mesh={"data": 2, "tensor": 8},
        in_specs=(P("data", "tensor"), P("tensor", None)),
    )  # fmt: skip
    (reduce,) = found.collectives
    assert (reduce.kind, reduce.axes) == ("all-reduce", ("tensor",))
    assert reduce.payload_bytes == 2048 * 8192 * 2
    assert found.gemm_flops == 2 * 2048 * 8192 * 1024
    rate = px.predict(found).tokens_per_s
    assert (rate.unit, rate.value) == ("calls/s", pytest.approx(1 / px.predict(found).step_s.value))
    manual = px.compile_for(
        "h100_2x8", lambda x: jax.lax.psum(x, "tensor"), x, mesh="data=2,tensor=8",
        in_specs=(P("data", "tensor"),), manual=True, out_specs=P("data", None),
    )  # fmt: skip
    assert manual.collectives[0].payload_bytes == 2048 * 1024 * 2


def test_an_axis_the_rules_do_not_name_is_refused():
    def odd():
        module = mini()
        module.up = nnx.Param(jnp.zeros((64, 256)), out_sharding=("embed", "channels"))
        return module

    with pytest.raises(ValueError, match="params/up: unknown logical axis 'channels'"):
        px.Program(odd, px.strategies.data_parallel(2)).verify(batch=2, seq_len=4)
    named = Strategy(
        "named", px.MeshSpec({"data": 2}), Rules(act_batch="data", extra={"channels": None})
    )
    assert px.Program(odd, named).verify(batch=2, seq_len=4).exact


REFUSED = {
    "pipeline": (px.strategies.tensor_pipeline(8, 2), {}, NotImplementedError, "user module"),
    "batch": (px.strategies.data_parallel(16), {"batch": 3}, ValueError, "16 does not divide 3"),
    "microbatches": (px.strategies.data_parallel(2), {"microbatches": 2}, ValueError, "Use 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_before_any_work(name):
    strategy, changes, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        px.Program(mini, strategy).verify(**({"batch": 16, "seq_len": 64} | changes))


def test_a_constructor_that_changes_what_is_outside_is_refused():
    rngs = nnx.Rngs(params=0)
    with pytest.raises(ValueError, match=r"made outside of it, such as an nnx\.Rngs"):
        px.Program(lambda: Mini(rngs), px.strategies.data_parallel(2)).verify(batch=2, seq_len=4)


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match="has 8 devices, cluster h100_2x8 has 16"):
        px.compile_for("h100_2x8", lambda: 0, mesh={"data": 8})
    with pytest.raises(ValueError, match="2 in_specs for 0 arguments"):
        px.compile_for("h100_2x8", lambda: 0, mesh={"data": 16}, in_specs=(None, None))
    with pytest.raises(ValueError, match="manual=True needs out_specs"):
        px.compile_for("h100_2x8", lambda: 0, mesh={"data": 16}, manual=True)
    with pytest.raises(ValueError, match="no mesh: give mesh="):
        px.compile_for("h100_2x8", lambda: 0)
    with pytest.raises(ValueError, match="ModelConfig or a function that makes an NNX module"):
        px.Program("ring_sp", px.strategies.data_parallel(2))  # pyright: ignore[reportArgumentType]


def test_a_user_module_is_measured(tmp_path):
    found = px.Program(mini, px.strategies.data_parallel(2)).measure(
        batch=2, seq_len=32, repeats=3, virtual=True, profile=tmp_path
    )
    assert (found.model, found.devices, found.repeats) == ("Mini", 2, 3)
    assert found.device == "cpu"
    assert found.step_s.low is not None
    assert found.step_s.low < found.step_s.value
    assert found.step_s.tag == "measured"
    assert found.profile is not None
    assert found.profile.devices == 2
    assert found.profile.attributed_share >= 0.95
    assert found.profile.trace.startswith(str(tmp_path))


def test_each_device_makes_only_its_own_parameters():
    strategy = px.strategies.tensor_pipeline(8, 1)
    sharded = px.Program(mini, strategy).sharded(Workload(2, 32))
    assert isinstance(sharded, ShardedModule)
    state = sharded.init_sharded(strategy.mesh.build(jax.devices()[:8]))
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(sharded.init()), strict=True)
    assert all(jnp.array_equal(made, wanted) for made, wanted in leaves)
    shards = [x.addressable_shards[0].data.shape for x in jax.tree.leaves(state)]
    assert (64, 32) in shards  # of up [64, 256]
    assert (32, 64) in shards


def test_a_function_that_multiplies_nothing_is_predicted(aot):
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16)
    found = px.compile_for("h100_1x1", lambda x: x + 1, x, mesh={})
    assert px.predict(found).bound.step_s.value == 0
    assert px.predict(found).step_s.value > 2 * 4096 * 4096 * 2 / 3.35e12


def test_a_full_rematerialization_is_said(aot):
    def function(x):
        return jax.lax.with_sharding_constraint(x * 2, P(("data", "model")))

    x = jax.ShapeDtypeStruct((64, 2048, 2048), jnp.bfloat16)
    found = px.compile_for(
        "h100_1x8", function, x, mesh={"data": 4, "model": 2}, in_specs=(P(None, "data", "model"),)
    )
    assert any("1 involuntary full rematerializations" in note for note in found.notes), found.notes


def test_a_sort_that_a_gpu_would_do_faster_is_said(aot, capfd):
    x = jax.ShapeDtypeStruct((1 << 20,), jnp.int32)
    found = px.compile_for("h100_1x1", jnp.argsort, x, mesh={})
    assert any("sorts are compiled as XLA's own" in note for note in found.notes), found.notes
    assert "CUB" not in capfd.readouterr().err
