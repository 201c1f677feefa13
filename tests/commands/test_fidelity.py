"""`compile_for` gives the program that JAX itself makes: the same memory, FLOPs and collectives."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, struct
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import parallax as px
from parallax.hlo import parse_module, read_ledger
from parallax.hlo.flops import module_flops
from parallax.lenses.compiling import LIBRARY_GEMMS
from parallax.meshes.cluster import cluster
from parallax.meshes.topology import topology_devices
from tests.selection import often

pytestmark = pytest.mark.slow

N = 1024


def shape(*dims, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(dims, dtype)


X, TOKENS = shape(N, N), shape(16, 64, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class Case:
    """A call; `jitted` is what JAX compiles where `fn` is not simply given to `jax.jit`."""

    fn: Callable
    args: tuple
    specs: Any
    mesh: dict = dataclasses.field(default_factory=lambda: {"data": 2, "model": 4})
    explicit: bool = False
    options: dict = dataclasses.field(default_factory=dict)
    jitted: Callable | None = None


def constrained(x, w):
    return jax.lax.with_sharding_constraint(x @ w, P("data", "model"))


def in_context(x, w):
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P("data", "model")))


def over_its_own_abstract_mesh(x, w):
    mesh = AbstractMesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    return jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P("data", "model")))


def mapped(x, w):
    def inner(x, w):
        return jax.lax.psum(x @ w, "model")

    return jax.shard_map(inner, in_specs=(P("data", "model"), P("model")), out_specs=P("data"))(
        x, w
    )


def partly_mapped(x, w):
    def inner(x, w):
        return jax.lax.psum(x @ w, "model")

    return jax.shard_map(
        inner, in_specs=(P(None, "model"), P("model")), out_specs=P(), axis_names={"model"}
    )(x, w)


def explicit_product(x, w):
    return jnp.einsum("bd,df->bf", x, w, out_sharding=P("data"))


def resharded(x, w):
    return jax.sharding.reshard(x * 2, P(None, "data")) + w


def explicit_inside(x, w):
    specs = (P("data", "model"), P("model"))
    inside: Any = jax.sharding.explicit_axes
    return inside(explicit_product, in_sharding=specs)(x, w)


def saves_a_name(x, w):
    """Names of residuals mean what they mean only where they were given."""

    def layer(x):
        return jnp.sin(checkpoint_name(jnp.cos(x @ w), "kept")) @ w

    keep = jax.checkpoint_policies.save_only_these_names("kept")
    return jax.grad(lambda x: jax.checkpoint(layer, policy=keep)(x).astype(jnp.float32).sum())(x)


@custom_partitioning  # pyright: ignore[reportCallIssue]
def by_rows(x):
    return jnp.cumsum(x, axis=1)


by_rows.def_partition(
    partition=lambda mesh, args, result: (
        mesh, lambda x: jnp.cumsum(x, axis=1), args[0].sharding, (args[0].sharding,)
    ),
    infer_sharding_from_operands=lambda mesh, args, result: args[0].sharding,
    sharding_rule="i j -> i j",
)  # fmt: skip


OPTIMIZER = optax.adamw(1e-3)


def loss(params, x):
    hidden = jax.nn.gelu(x @ params["up"].astype(x.dtype))
    return jnp.mean((hidden @ params["down"].astype(x.dtype)).astype(jnp.float32) ** 2)


def train_step(params, state, x):
    value, gradients = jax.value_and_grad(loss)(params, x)
    updates, state = OPTIMIZER.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


PARAMS = {"up": shape(N, 4 * N, dtype=jnp.float32), "down": shape(4 * N, N, dtype=jnp.float32)}
STATE = jax.eval_shape(OPTIMIZER.init, PARAMS)
SHARDS = jax.tree.map(lambda x: P("data") if x.ndim else P(), STATE)
TRAINING = (PARAMS, STATE, X), (P("data"), SHARDS, P("data"))

RULES = (("batch", "data"), ("seq", "model"), ("mlp", "model"))


def linen_constraints(x, up, down):
    with nn.logical_axis_rules(RULES):
        constrain = nn.spmd.with_logical_constraint
        hidden = constrain(jax.nn.gelu(x @ up), ("batch", None, "mlp"))
        return x + constrain(hidden @ down, ("batch", "seq", None))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(N, 4 * N, use_bias=False, dtype=jnp.bfloat16, rngs=rngs)
        self.down = nnx.Linear(4 * N, N, use_bias=False, dtype=jnp.bfloat16, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return x + self.drop(self.down(nnx.gelu(self.up(x))))


with nnx.use_eager_sharding(False):
    NET = nnx.eval_shape(lambda: Net(nnx.Rngs(0, dropout=1)))
GRAPH, LEAVES = nnx.split(NET)


@struct.dataclass
class State:
    w: Any
    name: str = struct.field(pytree_node=False, default="w")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
    x: Any
    mask: Any


def scaled(x, n, flag):
    return jnp.where(flag, x * n, x)


BOTH = (P("data", "model"), P("model"))
CASES = {
    "constraint": Case(constrained, (X, X), BOTH),
    "any names": Case(lambda x, w: x @ w, (X, X), (P("fsdp", "tp"), P("tp")), {"fsdp": 2, "tp": 4}),
    "mesh of the context": Case(in_context, (X, X), BOTH),
    "own abstract mesh": Case(over_its_own_abstract_mesh, (X, X), BOTH),
    "shard_map": Case(mapped, (X, X), BOTH),
    "partial shard_map": Case(partly_mapped, (X, X), BOTH),
    "explicit axes": Case(explicit_product, (X, X), BOTH, explicit=True),
    "reshard": Case(resharded, (X, X), (P("data"), P(None, "data")), explicit=True),
    "explicit inside auto": Case(explicit_inside, (X, X), BOTH),
    "saved names": Case(saves_a_name, (X, X), (P("data"), P())),
    "custom partitioning": Case(by_rows, (X,), (P("data"),)),
    "step": Case(train_step, *TRAINING),
    "step, donated": Case(train_step, *TRAINING, options={"donate_argnums": (0, 1)}),
    "step, jitted": Case(
        jax.jit(train_step, donate_argnums=(0, 1)), *TRAINING,
        jitted=jax.jit(train_step, donate_argnums=(0, 1)),
    ),
    "step, out_shardings": Case(
        train_step, *TRAINING,
        options={"out_shardings": (P("data"), SHARDS, P()), "donate_argnums": (0, 1)},
    ),
    "static argument": Case(
        jax.jit(lambda x, n: x @ x if n == "square" else x, static_argnums=1), (X, "square"),
        (P("data"), None),
        jitted=jax.jit(lambda x, n: x @ x if n == "square" else x, static_argnums=1),
    ),
    "Linen constraints": Case(
        linen_constraints, (shape(16, 512, N), shape(N, 4 * N), shape(4 * N, N)),
        (P("data", "model"), P(None, "model"), P("model")),
    ),
    "NNX state": Case(lambda s, x: nnx.merge(GRAPH, s)(x), (LEAVES, X), (P(), P("data"))),
    "NNX module": Case(lambda net, x: net(x), (NET, X), (P(), P("data"))),
    "flax.struct": Case(lambda s, x: x @ s.w, (State(X), X), (P("model"), P("data", "model"))),
    "dataclass": Case(
        lambda b: b.x @ b.mask, (Batch(X, X),), (Batch(P("data", "model"), P("model")),)
    ),
    "numbers": Case(scaled, (X, 3, True), (P("data"), None, None)),
    "prefix trees": Case(
        lambda p, x: x @ p["a"] @ p["b"]["c"], ({"a": X, "b": {"c": X}}, X),
        ({"a": P("data"), "b": {"c": None}}, P("data")),
    ),
    "a key": Case(
        lambda x, key: x * jax.random.normal(key, (N, N)).astype(x.dtype),
        (X, jax.eval_shape(lambda: jax.random.key(0))), (P("data"), P()),
    ),
    "partial": Case(
        functools.partial(constrained, w=np.ones((N, N), jnp.bfloat16)), (X,), BOTH[:1]
    ),
}  # fmt: skip


def sharded(mesh, arg, spec):
    """The argument as JAX takes it: `spec` is one for all, a tree of one for each, or a prefix."""

    def put(x, s):
        if not hasattr(x, "shape"):
            return x
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, s or P()))

    if spec is None or isinstance(spec, P):
        return jax.tree.map(lambda x: put(x, spec), arg)
    if isinstance(arg, dict):
        return {key: sharded(mesh, arg[key], spec[key]) for key in arg}
    return jax.tree.map(put, arg, spec)


def compiled_by_jax(case):
    target = cluster("h100_1x8")
    kind = AxisType.Explicit if case.explicit else AxisType.Auto
    grid = np.array(topology_devices(target), dtype=object).reshape(tuple(case.mesh.values()))
    mesh = Mesh(grid, tuple(case.mesh), axis_types=(kind,) * grid.ndim)
    with jax.set_mesh(mesh):
        args = [sharded(mesh, a, s) for a, s in zip(case.args, case.specs, strict=True)]
        jitted = case.jitted or jax.jit(case.fn, **case.options)
        return jitted.lower(*args).compile(LIBRARY_GEMMS)


@pytest.fixture(autouse=True)
def everyones_promotion():
    """Optax adds floats and integers, which this suite's strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@often(
    CASES, "constraint", "mesh of the context", "shard_map", "partial shard_map", "explicit axes",
    "saved names", "custom partitioning", "step, donated", "static argument", "Linen constraints",
    "NNX module", "dataclass", "numbers", "prefix trees", "a key",
)  # fmt: skip
def test_the_program_is_jaxs_own(name, aot):
    case = CASES[name]
    own = compiled_by_jax(case)
    memory, text = own.memory_analysis(), own.as_text()
    assert text is not None
    module = parse_module(text)
    options = dict(case.options)
    found = px.compile_for(
        "h100_1x8", case.fn, *case.args, mesh=case.mesh, in_specs=case.specs,
        donate=options.pop("donate_argnums", ()), **options,
    )  # fmt: skip
    assert memory is not None
    assert found.memory.argument_bytes == memory.argument_size_in_bytes
    assert found.memory.output_bytes == memory.output_size_in_bytes
    assert found.memory.temp_bytes == memory.temp_size_in_bytes
    assert found.memory.alias_bytes == memory.alias_size_in_bytes
    assert found.gemm_flops == module_flops(module).high
    ledger = read_ledger(module, case.mesh)
    assert found.ledger.by_kind_and_axes() == ledger.by_kind_and_axes()
    assert [c.name for c in found.collectives] == [c.name for c in ledger]
