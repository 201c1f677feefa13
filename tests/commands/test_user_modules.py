"""Programs of Linen modules and of callable pytrees, and what is said of unsplit parameters."""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from flax.linen.spmd import with_logical_constraint

import parallax as px
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import cpu_environment
from parallax.programs.user_module import ShardedModule
from parallax.workload import Workload

pytestmark = pytest.mark.slow

RULES = px.Rules(mlp="tensor", vocab="tensor", act_batch="data", extra={"batch": "data"})
TENSOR = px.Strategy("t", px.MeshSpec({"data": 2, "tensor": 4}), RULES)
LECUN = nn.initializers.lecun_normal()


class Block(nn.Module):
    dtype: Any = None

    @nn.compact
    def __call__(self, x, _=None):
        up = nn.with_logical_partitioning(LECUN, ("embed", "mlp"))
        down = nn.with_partitioning(LECUN, ("tensor", None))  # a mesh axis stands for itself
        h = nn.LayerNorm(use_bias=False)(x)
        h = nn.Dense(128, use_bias=False, dtype=self.dtype, kernel_init=up)(h)
        h = with_logical_constraint(nn.gelu(h), ("batch", None, "mlp"))
        h = nn.Dense(64, use_bias=False, dtype=self.dtype, kernel_init=down)(h)
        return x + nn.Dropout(0.2, deterministic=False)(h).astype(x.dtype), None


class Linen(nn.Module):
    """A Linen module in train mode: scanned layers, dropout, batch statistics, sown values."""

    dtype: Any = None
    embed: str = "embed"
    batch: str = "batch"

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(256, 64)(tokens)
        x, _ = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True},
            length=2, metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.dtype)(x, None)  # fmt: skip
        x = nn.BatchNorm(use_running_average=False)(x)
        self.sow("intermediates", "x", x)
        x = with_logical_constraint(x, (self.batch, None, None))
        head = nn.with_logical_partitioning(LECUN, (self.embed, "vocab"))
        return nn.Dense(256, use_bias=False, kernel_init=head)(x)


class MakesDataclasses(type):
    """A metaclass as Equinox has: a class becomes a dataclass and a pytree when it is made."""

    fields: ClassVar[dict[type, tuple[str, ...]]] = {}

    def __new__(cls, name, bases, namespace):
        made = super().__new__(cls, name, bases, namespace)
        dataclasses.dataclass(init="__init__" not in namespace, eq=False)(made)
        names = tuple(field.name for field in dataclasses.fields(made))  # pyright: ignore[reportArgumentType]
        cls.fields[made] = names
        jax.tree_util.register_pytree_with_keys(
            made,
            lambda x: ([(jax.tree_util.GetAttrKey(n), getattr(x, n)) for n in names], None),
            lambda _, leaves: functools.reduce(
                lambda x, item: object.__setattr__(x, *item) or x,
                zip(names, leaves, strict=True), object.__new__(made),
            ),
        )  # fmt: skip
        return made


def pytree_module():
    """Return a class as a script has it: it cannot be imported by a child process."""

    class Affine(metaclass=MakesDataclasses):
        weight: Any
        bias: Any
        scale: float = 1.0

    affine: Any = Affine

    class Mlp(metaclass=MakesDataclasses):
        table: Any
        layers: Any
        act: Any
        key: Any
        calls: Any
        keep: float = 0.9

        def __init__(self):
            assert "layers" in MakesDataclasses.fields[type(self)]
            keys = jax.random.split(jax.random.key(0), 3)
            self.table = jax.random.normal(keys[0], (256, 64)) / 8
            self.layers = [
                affine(jax.random.normal(keys[1], (64, 128)) / 8, jnp.zeros(128)),
                affine(jax.random.normal(keys[2], (128, 64)) / 8, jnp.zeros(64), 0.5),
            ]
            self.act, self.key = jax.nn.gelu, jax.random.key(7)
            self.calls = jnp.zeros((), jnp.int32)
            self.keep = 0.8

        def __call__(self, tokens):
            x, (up, down) = self.table[tokens], self.layers
            h = self.act(x @ up.weight + up.bias)
            kept = jax.random.bernoulli(self.key, self.keep, h.shape)
            return x + jnp.where(kept, h, 0) @ down.weight * down.scale + down.bias

    return Mlp


AXES = {
    "layers/0/weight": ("embed", "mlp"),
    "layers/1/w*": ("mlp", "embed"),
    "layers/0/*": ("mlp",),
}


@pytest.mark.full
def test_a_linen_module_is_verified_with_its_constraints_and_state():
    found = px.Program(Linen(), TENSOR).verify(batch=4, seq_len=32)
    assert found.exact
    assert (found.model, found.rows[0].dtype) == ("Linen", "float64")
    (note,) = found.notes
    assert note.startswith("4 of 7 parameters (66.6 kB) carry no logical axes and are replicated ")
    assert "over tensor=4: params/Embed_0/embedding, params/ScanBlock_0/LayerNorm_0/scale" in note


@pytest.mark.full
def test_a_linen_constructor_at_its_own_dtype():
    found = px.Program(lambda: Linen(jnp.bfloat16), TENSOR).verify(batch=4, seq_len=32)
    assert found.exact
    assert found.rows[0].dtype == "bfloat16"
    assert found.notes[0].startswith("computes in bfloat16: params/ScanBlock_0/Dense_0/kernel")


@pytest.mark.full
def test_a_linen_module_compiles_to_what_its_constraints_say(aot):
    found = px.Program(Linen(), TENSOR).compile("h100_1x8", batch=16, seq_len=256)
    totals = {(c.kind, c.axes) for c in found.collectives}
    assert ("all-reduce", ("tensor",)) in totals
    assert ("all-gather", ("data",)) not in totals
    odd = px.Program(Linen(embed="hidden", batch="examples"), TENSOR)
    found = odd.compile("h100_1x8", batch=16, seq_len=256)
    # The constraint reaches the compiler: a batch that no rule splits is gathered.
    assert ("all-gather", ("data",)) in {(c.kind, c.axes) for c in found.collectives}
    assert found.notes[-1] == (
        "logical axes that the rules do not know, whose dims are not split: examples, hidden. "
        "Map them with Rules(extra={'examples': ...})"
    )


def test_a_callable_pytree_is_verified_and_its_replication_said():
    program = px.Program(pytree_module(), TENSOR)
    found = program.verify(batch=4, seq_len=32)
    assert found.exact
    assert found.model == "Mlp"
    (note,) = found.notes
    assert note.startswith(
        "5 of 5 parameters (264 kB) carry no logical axes and are replicated over"
    )
    measured = program.measure(batch=4, seq_len=32, repeats=2, virtual=True)
    assert measured.notes[0].startswith("5 of 5 parameters (132 kB)")


def test_a_callable_pytree_is_split_by_logical_axes():
    program = px.Program(pytree_module(), TENSOR, logical_axes=AXES)
    found = program.verify(batch=4, seq_len=32)
    assert found.exact
    assert found.notes[0].startswith("2 of 5 parameters")
    sharded = program.sharded(Workload(4, 32))
    mesh = TENSOR.mesh.build(jax.devices()[:8])
    shards = [
        x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(sharded.abstract_state(mesh))
    ]
    assert shards.count((64, 32)) == shards.count((32, 64)) == shards.count((32,)) == 1


def test_the_logical_axes_of_any_module_can_be_given():
    program = px.Program(
        lambda: nnx.Linear(64, 128, rngs=nnx.Rngs(0)),
        TENSOR,
        logical_axes={"kernel": (None, "mlp")},
    )
    specs = program.sharded(Workload(4, 32)).specs
    assert jax.tree.leaves(specs) == [jax.P(None), jax.P(None, "tensor")]


def test_data_parallelism_replicates_and_needs_no_note():
    def make():
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"))
        return nnx.Sequential(nnx.Embed(9, 8, rngs=nnx.Rngs(0)),
                              nnx.Linear(8, 8, rngs=nnx.Rngs(0), kernel_init=init))  # fmt: skip

    assert ShardedModule(make, px.strategies.data_parallel(2), Workload(4, 32)).notes == ()
    sharded = ShardedModule(make, TENSOR, Workload(4, 32))
    assert sharded.notes[0].startswith("2 of 3 parameters (320 B) carry no logical axes")


REFUSED = {
    "no such path": ({"layers/7/*": ()}, "'layers/7/\\*' matches no array of the module. Its arr"),
    "too few names": ({"table": ("mlp",)}, "params/table: shape \\(256, 64\\) has 2 dims, but 1 l"),
    "unknown name": ({"table": ("rows", None)}, "params/table: unknown logical axis 'rows'"),
    "uneven": ({"layers/0/bias": ("mlp",), "table": (None, "mlp")}, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_logical_axes_are_one_clear_error(name):
    axes, message = REFUSED[name]
    program = px.Program(pytree_module(), TENSOR, logical_axes=axes)
    if message is None:
        assert program.sharded(Workload(4, 32)).specs
        return
    with pytest.raises(ValueError, match=message):
        program.sharded(Workload(4, 32))


def test_what_is_no_module_is_one_clear_error():
    for model in (pytree_module()(), nnx.Linear(2, 2, rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match=r"Write Program\(lambda: MyModule\(\.\.\.\)"):
            px.Program(model, TENSOR)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="must make an NNX module, a Linen module or a callable"):
        px.Program(lambda: 3, TENSOR).sharded(Workload(4, 32))  # pyright: ignore
    config = px.PAPERS["ring_sp"].config.small()
    with pytest.raises(ValueError, match="logical_axes are those of user modules"):
        px.Program(config, TENSOR, logical_axes=AXES)


def _fields_in_the_child(cls, *, on_progress):
    return MakesDataclasses.fields[cls], [field.name for field in dataclasses.fields(cls())]


def test_a_class_of_a_script_has_its_fields_where_its_metaclass_reads_them():
    class Sizes(metaclass=MakesDataclasses):
        rows: int = 3
        names: Any = dataclasses.field(default_factory=list)

    names = run_in_child(_fields_in_the_child, Sizes, environment=cpu_environment(1))
    assert names[0] == ("rows", "names")


def test_an_equinox_module_of_a_script():
    eqx = pytest.importorskip("equinox")

    class Mlp(eqx.Module):
        table: Any
        mlp: Any
        drop: Any
        key: Any
        name: str = eqx.field(static=True)

        def __init__(self):
            keys = jax.random.split(jax.random.key(0))
            self.table = jax.random.normal(keys[0], (256, 64)) / 8
            self.mlp = eqx.nn.MLP(64, 64, 128, depth=1, key=keys[1])
            self.drop, self.key, self.name = eqx.nn.Dropout(0.2), jax.random.key(3), "mlp"

        def __call__(self, tokens):
            x = self.table[tokens]
            return self.drop(x + jax.vmap(jax.vmap(self.mlp))(x), key=self.key)

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        axes = {"mlp/layers/0/weight": ("mlp", "embed"), "mlp/layers/1/weight": ("embed", "mlp")}
        program = px.Program(Mlp, TENSOR, logical_axes=axes)
        found = program.verify(batch=4, seq_len=32)
    assert found.exact
    assert found.notes[0].startswith("3 of 5 parameters")
