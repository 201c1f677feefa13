"""The verify lens on user modules of every kind: dtypes, dropout, statistics, keys, loops."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import parallax as px
from parallax.lenses.verify_module import verify_module
from parallax.results.lens_results import Verification
from parallax.workload import Workload
from tests.selection import often

pytestmark = pytest.mark.slow

RULES = px.Rules(mlp="tensor", heads="tensor", act_batch="data", extra={"stack": None})
TENSOR = px.Strategy("t", px.MeshSpec({"data": 2, "tensor": 4}), RULES)
INIT = nnx.initializers.lecun_normal()
TEXT = b"Every byte of this text is a token. " * 8


def named(*names):
    return nnx.with_partitioning(INIT, names)


@pytest.fixture(autouse=True)
def promotion_of_users():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def verify(make) -> Verification:
    return verify_module(make, TENSOR, Workload(4, 32), TEXT, "a text")


class Net(nnx.Module):
    """A residual MLP between a table and the part under test."""

    def __init__(self, part=None, dtype=None):
        rngs = nnx.Rngs(params=0, dropout=1)
        self.table = nnx.Param(jax.random.normal(rngs.params(), (256, 64), jnp.float32))
        self.up = nnx.Linear(64, 128, rngs=rngs, dtype=dtype, kernel_init=named("embed", "mlp"))
        self.down = nnx.Linear(128, 64, rngs=rngs, dtype=dtype, kernel_init=named("mlp", "embed"))
        self.part = part(rngs, dtype) if part else None

    def __call__(self, tokens):
        x = jnp.take(self.table[...], tokens, axis=0)
        x = x + self.down(nnx.gelu(self.up(x)))
        return self.part(x) if self.part else x


class Applied(nnx.Module):
    """A function as a part."""

    def __init__(self, function):
        self.function = function

    def __call__(self, x):
        return self.function(x)


def of(function):
    return lambda rngs, dtype: Applied(function)


class Attention(nnx.Module):
    def __init__(self, rngs, dtype):
        self.attend = nnx.MultiHeadAttention(
            4, 64, rngs=rngs, decode=False, dtype=dtype, dropout_rate=0.1, deterministic=False,
            kernel_init=named("embed", "heads", None),
            out_kernel_init=named("heads", None, "embed"),
        )  # fmt: skip

    def __call__(self, x):
        return x + self.attend(x, mask=nnx.make_causal_mask(x[..., 0]), rngs=nnx.Rngs(3))


class Gain(nnx.Module):
    """A scalar before a norm, which all but removes it: its true gradient is 1e-6 of the whole."""

    def __init__(self, rngs, dtype):
        self.gain = nnx.Param(jnp.ones((), jnp.float32))
        self.norm = nnx.LayerNorm(64, rngs=rngs, dtype=dtype, use_bias=False, use_scale=False)

    def __call__(self, x):
        return self.norm(x * self.gain[...].astype(x.dtype))


class Quantized(nnx.Module):
    """Integer weights, split by their names, in a shard_map that names the mesh's axes."""

    def __init__(self, rngs, dtype):
        self.weight = nnx.Param(jnp.ones((64, 128), jnp.int8), out_sharding=("embed", "mlp"))
        self.scale = nnx.Param(jnp.full((128,), 0.01, jnp.float32), out_sharding=("mlp",))

    def __call__(self, x):
        spec = jax.P("data", None, "tensor")
        x = x @ self.weight[...].astype(x.dtype) * self.scale[...].astype(x.dtype)
        x = jax.lax.with_sharding_constraint(x, spec)
        return jax.shard_map(jnp.tanh, in_specs=spec, out_specs=spec)(x)


class Stack(nnx.Module):
    """Layers stacked by `nnx.vmap` and run by `nnx.scan`."""

    def __init__(self, rngs, dtype):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: "stack"})
        def make(rngs):
            return nnx.Linear(64, 64, rngs=rngs, dtype=dtype, kernel_init=named("embed", None))

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return jax.nn.relu(layer(x)).astype(x.dtype) + x

        return run(x, self.layers)


class State(nnx.Module):
    """State that is no parameter: counts, flags, keys, a tree, an array that is no variable."""

    def __init__(self, rngs, dtype):
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.on = nnx.Variable(jnp.ones((64,), bool))
        self.key = nnx.Variable(jax.random.key(5))
        self.old_key = nnx.Variable(jax.random.PRNGKey(3))
        self.tree = nnx.Variable({"a": jnp.ones(3), "b": jnp.arange(3)})
        self.plain = jnp.arange(64.0)
        self.rngs = rngs

    def __call__(self, x):
        self.calls[...] += 1
        noise = sum(jax.random.normal(k[...], x.shape) for k in (self.key, self.old_key))
        return jnp.where(self.on[...], x, 0) * self.plain + self.tree["a"].sum() + noise


def rounded(x):
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def loops(x):
    x = jax.lax.fori_loop(0, 3, lambda i, c: c * 1.5, x.astype(jnp.float32))
    x = jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x)
    return jax.checkpoint(jnp.tanh)(x) + jax.random.normal(jax.random.key(0), x.shape, jnp.float32)


def attention_in_bfloat16(x):
    q = x.reshape(*x.shape[:2], 4, 16).astype(jnp.bfloat16)
    return jax.nn.dot_product_attention(q, q, q, is_causal=True)


def product_in_float8(x):
    low = x.astype(jnp.float8_e4m3fn)
    return jnp.einsum("bld,bmd->blm", low, low, preferred_element_type=jnp.float32)


F32, BF16, F16 = jnp.float32, jnp.bfloat16, jnp.float16
KINDS = {
    # name: (part, dtype of the module, dtype that it is judged in, what the note names)
    "attention": (Attention, None, "float64", ""),
    "attention float32": (Attention, F32, "float32", "params of part/attend/query (nnx.LinearG"),
    "attention bfloat16": (Attention, BF16, "bfloat16", "params of up (nnx.Linear dtype=bfloat16)"),
    "attention float16": (Attention, F16, "float16", "params of up (nnx.Linear dtype=float16)"),
    "dropout": (lambda rngs, _: nnx.Dropout(0.3, rngs=rngs), None, "float64", ""),
    "dropout bfloat16": (lambda rngs, _: nnx.Dropout(0.3, rngs=rngs), BF16, "bfloat16", "of down"),
    "statistics": (lambda rngs, d: nnx.BatchNorm(64, rngs=rngs, dtype=d), None, "float64", ""),
    "statistics float32": (
        lambda rngs, _: nnx.BatchNorm(64, rngs=rngs, dtype=F32), None, "float32", "BatchNorm",
    ),
    "fixed statistics": (
        lambda rngs, _: nnx.BatchNorm(64, use_running_average=True, rngs=rngs), None, "float64", "",
    ),
    "convolution": (lambda rngs, d: nnx.Conv(64, 64, (3,), rngs=rngs, dtype=d), BF16, "bfloat16",
                    "params of part (nnx.Conv dtype=bfloat16)"),
    "stack": (Stack, None, "float64", ""),
    "stack float32": (Stack, F32, "float32", "params of part/layers (nnx.Linear dtype=float32)"),
    "state": (State, None, "float64", ""),
    "quantized": (Quantized, None, "float64", ""),
    "gain": (Gain, F32, "float32", "params of up"),
    "loops": (of(loops), None, "float32", "(loops)"),
    "kernel": (of(attention_in_bfloat16), None, "bfloat16", "(attention_in_bfloat16)"),
    "reduced": (of(rounded), None, "bfloat16", "(rounded)"),
    "float8": (of(product_in_float8), None, "float8_e4m3fn", "(product_in_float8)"),
}  # fmt: skip


@often(
    KINDS, "attention float16", "dropout bfloat16", "statistics", "convolution", "state", "loops",
    "float8",
)  # fmt: skip
def test_every_kind_of_module_is_exact_at_its_narrowest_dtype(name):
    part, dtype, judged, note = KINDS[name]
    found = verify(lambda: Net(part, dtype))
    (row,) = found.rows
    assert found.exact
    assert row.dtype == judged
    assert row.gradients_limit is not None
    # A gradient that is nearly 0 in truth does not set the limit of the others.
    assert row.gradients_limit < {"float64": 1e-10, "float32": 1e-5}.get(judged, 0.2)
    said = [line for line in found.notes if line.startswith("computes in")]
    assert bool(said) == (judged != "float64")
    if said:
        assert said[0].startswith(f"computes in {judged}: ")
        assert note in said[0]


def test_an_embedding_is_named():
    found = verify(lambda: nnx.Embed(256, 64, rngs=nnx.Rngs(0)))
    assert found.exact
    assert found.notes[0] == "computes in float32: params of Embed (nnx.Embed dtype=float32)"


def is_split():
    return jax.sharding.get_abstract_mesh().shape["tensor"] > 1


class WrongBias(Net):
    """A module whose bias counts once for each shard."""

    def __call__(self, tokens):
        x = super().__call__(tokens)
        assert self.up.bias is not None
        return x + self.up.bias[:64].astype(x.dtype) if is_split() else x


class WrongOutput(Net):
    def __call__(self, tokens):
        return super().__call__(tokens) * (1.1 if is_split() else 1)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(None, "float64"), (BF16, "bfloat16"),
     pytest.param(F32, "float32", marks=pytest.mark.exhaustive)],
)  # fmt: skip
def test_what_is_not_exact_names_the_worst_parameter(dtype, name):
    found = verify(lambda: WrongBias(dtype=dtype))
    assert not found.exact
    (row,) = found.rows
    assert row.worst_parameter == "up/bias"
    assert row.gradients_error is not None
    assert f"not exact in {name}: error of the gradient of up/bias (float32)" in found.notes[0]
    assert f"{row.gradients_error:.2g}" in found.notes[0]
    found = verify(lambda: WrongOutput(dtype=dtype))
    assert not found.exact
    assert found.notes[0].startswith(f"not exact in {name}: error of the output 0.1, limit ")


def test_a_module_that_returns_more_than_an_array_is_refused():
    class Pair(Net):
        def __call__(self, tokens):
            return super().__call__(tokens), None

    with pytest.raises(ValueError, match="Pair returned a tuple; expected one array"):
        verify(Pair)


class Scanned(Net):
    """A scan over the sequence, whose carry a table casts to float32 while weights are float64."""

    def __init__(self, shift=1.0):
        super().__init__()
        self.embed = nnx.Embed(256, 64, rngs=nnx.Rngs(0), embedding_init=named("vocab", "embed"))
        self.shift = shift

    def __call__(self, tokens):
        x = self.embed(tokens)

        def step(carry, x):
            carry = jnp.tanh(self.down(nnx.gelu(self.up(carry)))) + x
            return carry, carry * self.shift

        return jax.lax.scan(step, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1))[1].swapaxes(0, 1)


class WrongScan(Scanned):
    """Another function on the mesh than on one device."""

    def __call__(self, tokens):
        sizes = jax.sharding.get_abstract_mesh().shape
        return super().__call__(tokens) * (1.0 + 1e-4 * (sizes["tensor"] > 1))


def test_a_module_that_float64_makes_mix_dtypes_runs_as_it_is_made():
    found = verify(Scanned)
    assert (found.exact, found.rows[0].dtype) == (True, "float32")
    assert 0 < found.rows[0].logits_error < 1e-6
    assert not verify(WrongScan).exact


def test_outputs_of_which_no_comparison_says_anything_are_said():
    nan, zero = (verify(functools.partial(Scanned, shift)) for shift in (jnp.nan, 0.0))
    assert not nan.exact
    assert "not finite on one device" in nan.notes[0]
    assert "0 everywhere" in zero.notes[0]


class Misshapen(Net):
    """A wrong module: the first product twice."""

    def __call__(self, tokens):
        return self.up(self.up(self.table[...][tokens]))


def test_a_wrong_module_is_named_with_its_line():
    with pytest.raises(
        ValueError, match=r"test_verify_module.py:\d+: dot_general requires"
    ) as error:
        px.Program(Misshapen, TENSOR).verify(batch=4, seq_len=32)
    assert len(str(error.value).splitlines()) == 1


class Ring(Net):
    """The library's own attention around the ring, in the module's own shard_map."""

    def __call__(self, tokens):
        x = super().__call__(tokens).astype(jnp.bfloat16)
        q = x.reshape(*x.shape[:2], 4, 16)
        attend = functools.partial(px.parallel.ring_attention, axis_name="seq", is_causal=True)
        spec = jax.P(None, "seq")
        return jax.shard_map(lambda q: attend(q, q, q), in_specs=spec, out_specs=spec)(q)


def test_the_float64_reference_reaches_into_a_shard_map():
    ring = px.strategies.ring_sequence(8)
    found = verify_module(Ring, ring, Workload(4, 32), TEXT, "a text")
    assert found.exact
    assert found.rows[0].dtype == "bfloat16"
    assert found.rows[0].reference_error > 1e-3  # rounding inside counts as the module's own


def test_another_output_on_the_mesh_is_refused():
    class Summed(Net):
        def __call__(self, tokens):
            spec = jax.P("data", None, "tensor")
            add = jax.shard_map(
                lambda x: jax.lax.psum(x, "tensor"), in_specs=spec, out_specs=jax.P("data")
            )
            return add(super().__call__(tokens))

    with pytest.raises(
        ValueError, match=r"float64\[4, 32, 16\] on the mesh and float64\[4, 32, 64"
    ):
        verify(Summed)


def test_a_module_without_parameters_has_no_gradients():
    class OneHot(nnx.Module):
        def __call__(self, tokens):
            return jax.nn.one_hot(tokens, 16, dtype=jnp.float32) * 1.5

    found = verify(OneHot)
    assert found.exact
    assert found.rows[0].gradients_error is None
