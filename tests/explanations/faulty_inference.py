"""Forward passes as users write them, each with one planted fault and its fixed version.

A section makes one program: called with mended=True, it makes the same program without the fault.
The line at fault ends in `# fault: NAME`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from tests.explanations.case import Case, Mended, array, marked
from tests.explanations.layers import (
    TENSOR_LAYERS,
    attention,
    constrain,
    layer_shapes,
    mlp,
    norm,
)

# Data x tensor parallel inference: batch and hidden units are swapped in one constraint.


def make_scorer(mended):
    hidden = P("data", None, "model") if mended else P("model", None, "data")

    def score(layers, x_BLD):
        def layer(x_BLD, w):
            x_BLD = x_BLD + attention(norm(x_BLD, w["norm1"]), w)
            h_BLF = jax.nn.gelu(norm(x_BLD, w["norm2"]) @ w["up"])
            h_BLF = constrain(h_BLF, hidden)  # fault: wrong_spec_order
            return constrain(x_BLD + h_BLF @ w["down"], P("data", None, None)), None

        return lax.scan(layer, x_BLD, layers)[0]

    return score


def wrong_spec_order():
    args = (layer_shapes(8, 4096, 16_384, 32), array(16, 2048, 4096))
    options = {
        "mesh": {"data": 2, "model": 8}, "in_specs": (TENSOR_LAYERS, P("data")),
        "out_shardings": P("data"), "donate": (1,),
    }  # fmt: skip
    return Case(
        "wrong_spec_order", "wrong spec order", "h100_2x8", make_scorer(False), args, options,
        **marked(__file__, "wrong_spec_order"), fixed=Mended(make_scorer(True), args, options),
        saves="time",
    )  # fmt: skip


# A deep equilibrium layer: 16 iterations gather the same split weight 16 times.


def make_equilibrium(mended):
    def solve(w_DD, x_BD):
        if mended:
            w_DD = constrain(w_DD, P())

        def iterate(z_BD, _):
            z_BD = jnp.tanh(z_BD @ w_DD + x_BD)  # fault: loop_gather
            return constrain(z_BD, P("data", None)), None

        return lax.scan(iterate, jnp.zeros_like(x_BD), length=16)[0]

    return solve


def loop_gather():
    args = (array(8192, 8192), array(8192, 8192))
    options = {
        "mesh": {"data": 8}, "in_specs": (P("data"), P("data")), "out_shardings": P("data"),
        "donate": (1,),
    }  # fmt: skip
    return Case(
        "loop_gather", "loop-invariant gather", "h100_1x8", make_equilibrium(False), args, options,
        **marked(__file__, "loop_gather"), fixed=Mended(make_equilibrium(True), args, options),
        saves="sent bytes",
    )  # fmt: skip


# Explicit axes: hidden units travel to whole rows for an elementwise gate, and back.


def make_explicit(mended):
    def block(x_BLD, w):
        h_BLF = jnp.einsum("bld,df->blf", x_BLD, w["up"])
        if not mended:
            h_BLF = jax.sharding.reshard(h_BLF, P("data", "model", None))  # fault: there_and_back
        h_BLF = jax.nn.gelu(h_BLF)
        if not mended:
            h_BLF = jax.sharding.reshard(h_BLF, P("data", None, "model"))
        out = P("data", None, None)
        return x_BLD + jnp.einsum("blf,fd->bld", h_BLF, w["down"], out_sharding=out), None

    def forward(layers, x_BLD):
        return lax.scan(block, x_BLD, layers)[0]

    return forward


def there_and_back():
    args = ({"up": array(8, 4096, 16_384), "down": array(8, 16_384, 4096)}, array(16, 2048, 4096))
    options = {
        "mesh": AbstractMesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2),
        "in_specs": ({"up": P(None, None, "model"), "down": P(None, "model")}, P("data")),
        "donate": (1,),
    }  # fmt: skip
    return Case(
        "there_and_back", "resharding there and back", "h100_1x8", make_explicit(False), args,
        options, **marked(__file__, "there_and_back"),
        fixed=Mended(make_explicit(True), args, options), saves="time",
    )  # fmt: skip


# NNX, tensor parallel: the gate was given no sharding, so every GPU holds all of it.


class GatedMLP(nnx.Module):
    """A gated MLP whose weights name mesh axes."""

    def __init__(self, D: int, F: int, gate: tuple | None, rngs: nnx.Rngs):
        def matrix(shape, names):
            value = jax.random.normal(rngs.params(), shape, jnp.bfloat16)
            return nnx.Param(value, out_sharding=names, eager_sharding=False)

        self.up = matrix((D, F), (None, "model"))
        self.gate = matrix((D, F), gate)
        self.down = matrix((F, D), ("model", None))

    def __call__(self, x_BD):
        return (jax.nn.silu(x_BD @ self.gate[...]) * (x_BD @ self.up[...])) @ self.down[...]


class Tower(nnx.Module):
    """A residual stack of gated MLPs."""

    def __init__(self, layers: int, gate: tuple | None, rngs: nnx.Rngs):
        self.layers = nnx.List([GatedMLP(8192, 28_672, gate, rngs) for _ in range(layers)])

    def __call__(self, x_BD):
        for layer in self.layers:
            x_BD = x_BD + layer(x_BD)
        return x_BD


def make_tower(gate):
    graph, state = nnx.split(nnx.eval_shape(lambda: Tower(4, gate, nnx.Rngs(params=0))))

    def forward(state, x_BD):
        return nnx.merge(graph, state)(x_BD)

    args = (state, array(4096, 8192))
    options = {
        "mesh": {"model": 8}, "in_specs": (nnx.get_partition_spec(state), P()),
        "out_shardings": P(), "donate": (1,),
    }  # fmt: skip
    return Mended(forward, args, options)


def replicated_parameter():
    faulty = make_tower(None)
    return Case(
        "replicated_parameter", "replicated parameter", "h100_1x8", faulty.fn, faulty.args,
        faulty.options, argument="state['layers'][0]['gate'].value",
        fixed=make_tower((None, "model")), saves="memory",
    )  # fmt: skip


# An encoder splits the batch over all GPUs, what follows splits the sequence over `data`. No
# collective goes from one to the other, so XLA replicates the array first, with a warning.


def make_two_stages(mended):
    def encode(x_BLD, w):
        x_BLD = x_BLD + attention(norm(x_BLD, w["norm1"]), w)
        return constrain(x_BLD, P(("data", "model"))), None

    def decode(x_BLD, w):
        x_BLD = x_BLD + mlp(norm(x_BLD, w["norm2"]), w)
        return constrain(x_BLD, P(None, "data", None)), None

    def forward(encoder, decoder, x_BLD):
        x_BLD, _ = lax.scan(encode, x_BLD, encoder)
        if mended:  # one all-to-all, then one all-gather over `model`
            x_BLD = constrain(x_BLD, P(None, ("data", "model"), None))
        x_BLD = constrain(x_BLD, P(None, "data", None))  # fault: full_rematerialization
        return lax.scan(decode, x_BLD, decoder)[0]

    return forward


def full_rematerialization():
    weights = layer_shapes(2, 4096, 16_384, 32)
    encoder = {name: weights[name] for name in ("qkv", "out", "norm1")}
    decoder = {name: weights[name] for name in ("up", "down", "norm2")}
    args = (encoder, decoder, array(16, 2048, 4096))
    split = {name: TENSOR_LAYERS[name] for name in decoder}
    options = {
        "mesh": {"data": 8, "model": 2}, "in_specs": (P(), split, P(("data", "model"))),
        "out_shardings": P(None, "data"),
    }  # fmt: skip
    return Case(
        "full_rematerialization", "involuntary full rematerialization", "h100_2x8",
        make_two_stages(False), args, options, **marked(__file__, "full_rematerialization"),
        fixed=Mended(make_two_stages(True), args, options), saves="sent bytes",
    )  # fmt: skip


# Decoding: a scan takes each layer's cache as input and stacks a new one as output.


def make_decode(mended):
    def token(x_BD, w, keys_BSHK, values_BSHK, position):
        normed_BD = norm(x_BD, w["norm1"])
        q, k, v = jnp.einsum("bd,cdhk->cbhk", normed_BD, w["qkv"])
        keys_BSHK = lax.dynamic_update_slice_in_dim(keys_BSHK, k[:, None], position, 1)
        values_BSHK = lax.dynamic_update_slice_in_dim(values_BSHK, v[:, None], position, 1)
        length = jnp.full(x_BD.shape[0], position + 1)
        mixed = jax.nn.dot_product_attention(
            q[:, None], keys_BSHK, values_BSHK, key_value_seq_lengths=length
        )
        x_BD = x_BD + jnp.einsum("bhk,hkd->bd", mixed[:, 0], w["out"])
        return x_BD + mlp(norm(x_BD, w["norm2"]), w), keys_BSHK, values_BSHK

    def decode(layers, cache, x_BD, position):
        if mended:

            def layer(carry, w):
                x_BD, keys, values, i = carry
                x_BD, k, v = token(x_BD, w, keys[i], values[i], position)
                return (x_BD, keys.at[i].set(k), values.at[i].set(v), i + 1), None

            (x_BD, keys, values, _), _ = lax.scan(layer, (x_BD, *cache, 0), layers)
            return x_BD, (keys, values)

        def stacked(x_BD, layer):
            w, keys, values = layer
            x_BD, *cache = token(x_BD, w, keys, values, position)
            return x_BD, tuple(cache)

        return lax.scan(stacked, x_BD, (layers, *cache))  # fault: copied_cache

    return decode


def copied_cache():
    cache = (array(16, 32, 4096, 32, 128), array(16, 32, 4096, 32, 128))
    args = (layer_shapes(16, 4096, 16_384, 32), cache, array(32, 4096), array(dtype=jnp.int32))
    split = P(None, None, None, "model")
    options = {
        "mesh": {"model": 8}, "in_specs": (TENSOR_LAYERS, split, P(), P()),
        "out_shardings": (P(), split), "donate": (1,),
    }  # fmt: skip
    return Case(
        "copied_cache", "copied KV cache", "h100_1x8", make_decode(False), args, options,
        **marked(__file__, "copied_cache"), fixed=Mended(make_decode(True), args, options),
        saves="memory",
    )  # fmt: skip
