"""Arguments, meshes and specs of user functions, as people have them."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import parallax as px

pytestmark = pytest.mark.slow
N = 512


@pytest.fixture(autouse=True)
def everyones_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module", params=[AxisType.Auto, AxisType.Explicit])
def mesh(request):
    """A mesh over virtual CPU devices of this process, as a user's script makes it."""
    return jax.make_mesh((8,), ("data",), axis_types=(request.param,), devices=jax.devices()[:8])


def arrays(mesh):
    x = jax.device_put(np.ones((N, N), np.float32), NamedSharding(mesh, P("data")))
    return jax.device_put(np.ones((N, N), np.float32), NamedSharding(mesh, P())), x


def loss(w, x):
    return jnp.mean((x @ w) ** 2)


GRADIENT_SUM = {("all-reduce", ("data",)): 2 * 7 / 8 * N * N * 4}


def sent(found):
    return {k: v for k, v in found.ledger.by_kind_and_axes().items() if v > 100}


def test_concrete_arrays_bring_their_mesh_and_specs(mesh, aot):
    found = px.compile_for("h100_1x8", jax.jit(jax.grad(loss), donate_argnums=0), *arrays(mesh))
    assert sent(found) == GRADIENT_SUM
    assert found.memory.alias_bytes == N * N * 4


def test_a_mesh_of_the_script_in_a_closure(mesh, aot):
    def constrained(w, x):
        y = x @ w
        if mesh.axis_types == (AxisType.Auto,):
            y = jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P("data")))
        mapped = jax.shard_map(jnp.sin, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
        return jnp.mean(mapped(y))

    step = jax.grad(constrained)
    assert sent(px.compile_for("h100_1x8", step, *arrays(mesh))) == GRADIENT_SUM
    shapes = [jax.ShapeDtypeStruct((N, N), jnp.float32)] * 2
    specs = (P(), P("data"))
    found = px.compile_for("h100_1x8", step, *shapes, mesh=mesh, in_specs=specs)
    assert sent(found) == GRADIENT_SUM
    if mesh.axis_types == (AxisType.Auto,):
        found = px.compile_for("h100_1x8", step, *shapes, mesh={"data": 8}, in_specs=specs)
        assert sent(found) == GRADIENT_SUM


def test_the_mesh_of_the_context(mesh, aot):
    shapes = [jax.ShapeDtypeStruct((N, N), jnp.float32)] * 2
    if mesh.axis_types != (AxisType.Auto,):
        pytest.skip("with Explicit axes the arguments' own shardings decide, and these have none")
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(loss), in_shardings=(P(), P("data")))
        assert sent(px.compile_for("h100_1x8", step, *shapes)) == GRADIENT_SUM


def test_equinox_modules_are_partitioned(aot):
    model = eqx.filter_eval_shape(lambda: eqx.nn.MLP(N, N, N, depth=2, key=jax.random.key(0)))
    x = jax.ShapeDtypeStruct((64, N), jnp.float32)

    @eqx.filter_jit(donate="all")
    def step(model, x):
        value, gradients = eqx.filter_value_and_grad(lambda m: jnp.mean(jax.vmap(m)(x) ** 2))(model)
        return eqx.apply_updates(model, gradients), value

    options = {"mesh": {"data": 8}, "in_specs": (None, P("data"))}
    forward = px.compile_for("h100_1x8", lambda m, x: jax.vmap(m)(x), model, x, **options)
    assert forward.gemm_flops == 3 * 2 * 8 * N * N
    assert any("held fixed, such as the" in note for note in forward.notes)
    found = px.compile_for("h100_1x8", step, model, x, **options)
    leaves = [w for w in jax.tree.leaves(model) if hasattr(w, "shape")]
    weights = sum(w.size * w.dtype.itemsize for w in leaves)
    assert sent(found)["all-reduce", ("data",)] == pytest.approx(2 * 7 / 8 * weights, abs=16)
    assert found.memory.alias_bytes >= weights


def test_an_nnx_step_with_its_optimizer(aot):
    def make():
        return nnx.Linear(N, N, rngs=nnx.Rngs(0))

    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(make)
        adam = optax.adam(1e-3)
        optimizer = nnx.eval_shape(lambda: nnx.Optimizer(make(), adam, wrt=nnx.Param))

    @nnx.jit
    def step(model, optimizer, x):
        value, gradients = nnx.value_and_grad(lambda m: jnp.mean(m(x) ** 2))(model)
        optimizer.update(model, gradients)
        return value

    x = jax.ShapeDtypeStruct((64, N), jnp.float32)
    found = px.compile_for(
        "h100_1x8", step, model, optimizer, x, mesh={"data": 8}, in_specs=(P(), P(), P("data"))
    )
    assert sent(found)["all-reduce", ("data",)] == pytest.approx(
        2 * 7 / 8 * (N * N + N) * 4, abs=16
    )


def test_one_spec_is_that_of_all_arguments(aot):
    x = jax.ShapeDtypeStruct((N, N), jnp.float32)
    found = px.compile_for(
        "h100_1x8", lambda x, y: x + y, x, x, mesh={"data": 8}, in_specs=P("data")
    )
    assert found.memory.argument_bytes == 2 * N * N * 4 // 8


def test_arrays_in_the_hosts_memory_take_none_of_the_devices(aot):
    """A stack of weights on the host, copied layer by layer, and results that go there."""
    abstract = AbstractMesh((8,), ("data",))
    on_host = functools.partial(NamedSharding, abstract, memory_kind="pinned_host")

    def layers(stack, x):
        def layer(x, w):
            return jnp.tanh(x @ jax.device_put(w, jax.memory.Space.Device)), None

        return jax.lax.scan(layer, x, stack)[0]

    stack, x = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((4, N, N), (N, N)))
    found = px.compile_for(
        "h100_1x8", layers, stack, x, mesh={"data": 8}, in_specs=(on_host(P()), P("data")),
        out_shardings=on_host(P("data")),
    )  # fmt: skip
    assert found.memory.argument_bytes == N * N * 2 // 8
    assert found.memory.output_bytes == 0
    assert found.work is not None
    copied = [(k.from_host_bytes * n, k.to_host_bytes * n) for k, n in found.work.launches(min)]
    assert sum(n for n, _ in copied) == 4 * N * N * 2
    assert sum(n for _, n in copied) == N * N * 2 // 8
    assert "host copies" in px.predict(found).unvalidated


def test_constants_take_memory_on_every_device(aot):
    table = np.random.default_rng(0).normal(size=(N, 2 * N)).astype(np.float32)
    x = jax.ShapeDtypeStruct((N, N), jnp.float32)
    found = px.compile_for("h100_1x8", lambda x: x @ table, x, mesh={"data": 8}, in_specs=P("data"))
    assert found.memory.constant_bytes == table.nbytes
    m = found.memory
    assert m.total_bytes - table.nbytes == m.argument_bytes + m.output_bytes + m.temp_bytes
    assert any("constants, which the function closes over" in note for note in found.notes)


class Step:
    """A step as a method of `jax.jit`."""

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def run(self, state, x):
        return state + x


def test_what_is_bound_to_a_jitted_function_keeps_its_donation(aot):
    jitted = jax.jit(lambda state, x, *, by: state + by * x, donate_argnums=0)
    x = jax.ShapeDtypeStruct((N, N), jnp.float32)

    def wrapped(state, x):
        return jitted(state, x, by=2.0)

    def compiled(fn):
        return px.compile_for("h100_1x8", fn, x, x, mesh={"data": 8}, in_specs=P("data"))

    for fn in (functools.partial(jitted, by=2.0), Step().run):
        found = compiled(fn)
        assert (found.memory.alias_bytes, found.notes) == (N * N * 4 // 8, ())
    # JAX itself ignores a donation inside of another program: that is said.
    found = compiled(wrapped)
    assert found.memory.alias_bytes == 0
    assert any("donates arguments" in note for note in found.notes)


def test_an_algorithm_that_the_partitioner_drops_is_said(aot):
    f32 = jax.lax.DotAlgorithmPreset.F32_F32_F32

    def chain(x, w):
        return jax.lax.scan(lambda x, _: (jnp.matmul(x, w, precision=f32), None), x, length=2)[0]

    x = jax.ShapeDtypeStruct((N, N), jnp.float32)
    found = px.compile_for("h100_1x8", chain, x, x, mesh={"data": 8}, in_specs=(P("data"), P()))
    assert any("algorithm F32_F32_F32" in note for note in found.notes)
    assert found.work is not None
    assert found.work.product_dtypes == {"tf32"}
    alone = px.compile_for("h100_1x1", chain, x, x, mesh={})
    assert alone.work is not None
    assert (alone.work.product_dtypes, alone.notes) == ({"f32"}, ())


REFUSED = {
    "an axis that is not there": ((P("model"), P()), r"argument 0\['a'\]: P\('model',\) names"),
    "more entries than dims": (
        ({"a": P(), "b": P(None, None, "data")}, P()), r"\['b'\]: .* 3 entries"
    ),
    "no multiple": ((P(), P("data")), "argument 1: dim 0 of .1001, 512. is not a multiple of"),
    "no prefix": (({"a": P()}, P()), "argument 0: its in_specs are no prefix of it"),
    "no spec": (({"a": P(), "b": "data"}, P()), "expected a PartitionSpec, .* got str"),
    "one too few": ((P(),), "1 in_specs for 2 arguments"),
    "an axis twice": ((P("data", "data"), P()), r"argument 0\['a'\]: .* mesh axis 'data' twice"),
    "by name": ({"t": P()}, "in_specs: expected a tuple .*, got dict"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_specs_that_do_not_fit_are_named(name, aot):
    specs, message = REFUSED[name]
    x = jax.ShapeDtypeStruct((N, N), jnp.float32)
    odd = jax.ShapeDtypeStruct((1001, N), jnp.float32)
    with pytest.raises(ValueError, match=message):
        px.compile_for(
            "h100_1x8", lambda t, x: x @ t["a"], {"a": x, "b": x}, odd, mesh={"data": 8},
            in_specs=specs,
        )  # fmt: skip


def test_results_meshes_and_operations_that_do_not_fit_are_named(aot):
    x = jax.ShapeDtypeStruct((N, N), jnp.float32)

    split = P("data")

    def compiled(fn, mesh: Any = None, in_specs: Any = split, out_shardings: Any = None):
        return px.compile_for(
            "h100_1x8", fn, x, mesh=mesh or {"data": 8}, in_specs=in_specs,
            out_shardings=out_shardings,
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"out_shardings\['y'\]: P\('model',\) names mesh axis"):
        compiled(lambda x: {"y": x}, out_shardings={"y": P("model")})
    with pytest.raises(ValueError, match="^compile_for: .*result.*dimension size is 100") as error:
        compiled(lambda x: x[:100], out_shardings=P("data"))
    assert "user_function.py" not in str(error.value)
    with pytest.raises(ValueError, match=r"mesh: expected \{axis: size, ...\}.*got \(2, 4\)"):
        compiled(jnp.sin, mesh=(2, 4))
    summed = jax.shard_map(lambda x: jax.lax.psum(x, "model"), in_specs=P("data"), out_specs=P())
    with pytest.raises(ValueError, match=r"refuses the operation at .*test_user_arguments.py:\d+"):
        compiled(lambda x: summed(x))
    with pytest.raises(ValueError, match="jnp.linalg.eig"):
        compiled(jnp.linalg.eig, in_specs=P())
    with pytest.raises(ValueError, match="'no_such_target' .jax.ffi., of which nothing is"):
        compiled(lambda x: jax.ffi.ffi_call("no_such_target", x)(x))


def test_devices_that_no_mesh_here_has_are_named(aot):
    two = jax.make_mesh((2,), ("data",), devices=jax.devices()[8:10], axis_types=(AxisType.Auto,))

    def step(x):
        return jax.lax.with_sharding_constraint(x * 2, NamedSharding(two, P("data")))

    x = jax.ShapeDtypeStruct((N, N), jnp.float32)
    with pytest.raises(ValueError, match="the function itself names devices"):
        px.compile_for("h100_1x8", step, x, mesh={"data": 8}, in_specs=(P("data"),))


def test_a_jitted_functions_options_are_its_own(aot):
    step = jax.jit(functools.partial(loss))
    with pytest.raises(ValueError, match=r"its own to give: jax\.jit\(fn, donate_argnums"):
        px.compile_for("h100_1x1", step, *[jax.ShapeDtypeStruct((N, N), jnp.float32)] * 2, donate=0)


def test_errors_name_who_was_called(aot):
    x = jax.ShapeDtypeStruct((N, N), jnp.float32)
    with pytest.raises(ValueError, match=r"^explain: argument 0: P\('model',\) names mesh axis"):
        px.explain("h100_1x8", jnp.sin, x, mesh={"data": 8}, in_specs=(P("model"),))
    with pytest.raises(ValueError, match="^explain: no mesh"):
        px.explain("h100_1x8", jnp.sin, x)
