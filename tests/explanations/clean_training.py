"""Training steps as users write them, without a fault: what they send is needed."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.linen import spmd
from jax import lax
from jax.sharding import PartitionSpec as P

from tests.explanations.case import Case, array
from tests.explanations.layers import (
    FSDP,
    OPTIMIZER,
    TENSOR,
    attention,
    constrain,
    cross_entropy,
    decoder,
    decoder_layer,
    decoder_loss,
    layer_shapes,
    mlp,
    moment_specs,
    moments,
    norm,
    tensor_layer,
    tokens,
    train_step,
    trained,
)

# A small model under data parallelism: one gradient sum; its state is small beside activations.


def data_parallel():
    params = decoder(4, D=512, F=2048, H=8, V=8192)
    args, options = trained(params, P(), tokens(512, 512), {"data": 8}, state_specs=P())
    step = train_step(decoder_loss)
    return Case("data_parallel", "data parallelism", "h100_1x8", step, args, options)


# FSDP of float32 weights that travel in bfloat16: gathers per layer, forward and in remat.


def narrow(w):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), w)


def fsdp():
    def layer(x_BLD, w):
        return decoder_layer(x_BLD, narrow(w))

    def loss(params, batch):
        inputs, labels = batch
        x_BLD = constrain(narrow(params["embed"])[inputs], P("data", None, None))
        x_BLD, _ = lax.scan(jax.checkpoint(layer), x_BLD, params["layers"])
        return cross_entropy(x_BLD @ narrow(params["head"]), labels)

    params = decoder(4, D=2048, F=8192, H=16, V=32_768, dtype=jnp.float32)
    args, options = trained(params, FSDP, tokens(32, 2048), {"data": 16})
    return Case("fsdp", "FSDP with remat", "h100_2x8", train_step(loss), args, options)


# ZeRO: weights whole, gradients scattered, moments and the update split, weights gathered once.


def zero():
    params = layer_shapes(4, 2048, 8192, 16)
    split = FSDP["layers"] | {"norm1": P(None, "data"), "norm2": P(None, "data")}
    states = moment_specs(params, split)

    def loss(layers, batch):
        x_BLD, y_BLD = batch
        x_BLD, _ = lax.scan(jax.checkpoint(decoder_layer), x_BLD, layers)
        return jnp.mean(jnp.square((x_BLD - y_BLD).astype(jnp.float32)))

    def step(params, opt_state, batch):
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = OPTIMIZER.update(constrain(gradients, split), opt_state,
                                              constrain(params, split))  # fmt: skip
        return optax.apply_updates(constrain(params, split), updates), opt_state, value

    args = (params, moments(params), (array(16, 2048, 2048), array(16, 2048, 2048)))
    options = {
        "mesh": {"data": 8}, "in_specs": (P(), states, P("data")),
        "out_shardings": (P(), states, P()), "donate": (0, 1),
    }  # fmt: skip
    return Case("zero", "ZeRO", "h100_1x8", step, args, options)


# Data x tensor parallelism, as Megatron has it.


def tensor_parallel_loss(params, batch):
    inputs, labels = batch
    table_VD = constrain(params["embed"], P("model"))
    x_BLD = constrain(table_VD[inputs], P("data", None, None))
    x_BLD, _ = lax.scan(tensor_layer, x_BLD, params["layers"])
    logits_BLV = constrain(x_BLD @ params["head"], P("data", None, "model"))
    return cross_entropy(logits_BLV, labels)


def data_and_tensor():
    params = decoder(4, D=4096, F=16_384, H=32, V=32_768)
    args, options = trained(params, TENSOR, tokens(8, 2048), {"data": 2, "model": 8})
    step = train_step(tensor_parallel_loss)
    return Case("data_and_tensor", "data x tensor parallelism", "h100_2x8", step, args, options)


# FSDP over nodes, tensor parallelism inside them.


def fsdp_and_tensor():
    layers = {
        "qkv": P(None, None, "data", "model"), "out": P(None, "model", None, "data"),
        "up": P(None, "data", "model"), "down": P(None, "model", "data"), "norm1": P(),
        "norm2": P(),
    }  # fmt: skip
    specs = {"embed": P("model", "data"), "layers": layers, "head": P("data", "model")}
    params = decoder(4, D=4096, F=16_384, H=32, V=32_768)
    args, options = trained(params, specs, tokens(16, 2048), {"data": 2, "model": 8})
    step = train_step(tensor_parallel_loss)
    return Case("fsdp_and_tensor", "FSDP x tensor parallelism", "h100_2x8", step, args, options)


# An NNX module trained with its optimizer's state as a pytree.


class Net(nnx.Module):
    """An MLP whose hidden units are split over `model`."""

    def __init__(self, D: int, F: int, rngs: nnx.Rngs):
        def matrix(shape, names):
            value = jax.random.normal(rngs.params(), shape, jnp.bfloat16)
            return nnx.Param(value, out_sharding=names, eager_sharding=False)

        self.up = matrix((D, F), (None, "model"))
        self.down = matrix((F, D), ("model", None))

    def __call__(self, x_BD):
        return x_BD + jax.nn.gelu(x_BD @ self.up[...]) @ self.down[...]


def nnx_train_step():
    graph, params = nnx.split(nnx.eval_shape(lambda: Net(8192, 32_768, nnx.Rngs(params=0))))
    specs = nnx.get_partition_spec(params)

    def loss(params, batch):
        x_BD, y_BD = batch
        return jnp.mean(jnp.square((nnx.merge(graph, params)(x_BD) - y_BD).astype(jnp.float32)))

    batch = (array(16_384, 8192), array(16_384, 8192))
    args, options = trained(params, specs, batch, {"data": 2, "model": 4})
    return Case("nnx_train_step", "NNX", "h100_1x8", train_step(loss), args, options)


# A Linen module with logical axes.


class LinenMLP(nn.Module):
    """An MLP that names logical axes and no mesh axis."""

    @nn.compact
    def __call__(self, x_BD):
        def matrix(name, shape, names):
            init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), names)
            return self.param(name, init, shape, jnp.bfloat16)

        h_BF = jax.nn.gelu(x_BD @ matrix("up", (8192, 32_768), ("embed", "mlp")))
        h_BF = spmd.with_logical_constraint(h_BF, ("batch", "mlp"))
        y_BD = h_BF @ matrix("down", (32_768, 8192), ("mlp", "embed"))
        return spmd.with_logical_constraint(x_BD + y_BD, ("batch", "embed"))


RULES = (("batch", "data"), ("mlp", "model"), ("embed", None))


def linen_logical_axes():
    module = LinenMLP()
    boxed = jax.eval_shape(module.init, jax.random.key(0), array(8, 8192))
    specs = spmd.logical_to_mesh(nn.get_partition_spec(boxed), RULES)

    def loss(params, batch):
        x_BD, y_BD = batch
        with nn.logical_axis_rules(RULES):
            y_hat_BD = module.apply(params, x_BD)
        return jnp.mean(jnp.square((y_hat_BD - y_BD).astype(jnp.float32)))

    batch = (array(16_384, 8192), array(16_384, 8192))
    args, options = trained(nn.unbox(boxed), specs, batch, {"data": 2, "model": 4})
    return Case("linen_logical_axes", "Linen", "h100_1x8", train_step(loss), args, options)


# Gradient accumulation: a local sum over microbatches, one sum over the GPUs.


def accumulation():
    def loss(weights, batch):
        x_BD, y_BD = batch
        x_BD, _ = lax.scan(lambda x, w: (x + mlp(x, w), None), x_BD, weights)
        return jnp.mean(jnp.square((x_BD - y_BD).astype(jnp.float32)))

    def gradients(weights, batch):
        weights = jax.tree.map(lambda w: lax.pcast(w, "data", to="varying"), weights)

        def add(total, micro):
            return jax.tree.map(jnp.add, total, jax.grad(loss)(weights, micro)), None

        total, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, weights), batch)
        return jax.tree.map(lambda g: lax.pmean(g, "data"), total)

    def step(weights, batch):
        summed = jax.shard_map(gradients, in_specs=(P(), P(None, "data")), out_specs=P())
        return jax.tree.map(lambda w, g: w - 1e-3 * g, weights, summed(weights, batch))

    weights = {"up": array(4, 1024, 4096), "down": array(4, 4096, 1024)}
    args = (weights, (array(8, 65_536, 1024), array(8, 65_536, 1024)))
    options = {
        "mesh": {"data": 8}, "in_specs": (P(), P(None, "data")), "out_shardings": P(),
        "donate": (0,),
    }  # fmt: skip
    return Case("accumulation", "gradient accumulation", "h100_1x8", step, args, options)


# One table for embedding and logits, split over the vocabulary.


def tied_embedding():
    def loss(params, batch):
        inputs, labels = batch
        x_BLD = norm(constrain(params["table"][inputs], P()), params["norm"])
        logits_BLV = jnp.einsum("bld,vd->blv", x_BLD, params["table"])
        return cross_entropy(constrain(logits_BLV, P(None, None, "model")), labels)

    params = {"table": array(131_072, 4096), "norm": array(4096)}
    specs = {"table": P("model"), "norm": P()}
    args, options = trained(params, specs, tokens(4, 2048), {"model": 8}, split=None)
    return Case("tied_embedding", "tied vocabulary", "h100_1x8", train_step(loss), args, options)


# One GPU.


def one_device():
    def loss(layers, batch):
        x_BLD, y_BLD = batch

        def layer(x_BLD, w):
            x_BLD = x_BLD + attention(norm(x_BLD, w["norm1"]), w)
            return x_BLD + mlp(norm(x_BLD, w["norm2"]), w), None

        x_BLD, _ = lax.scan(jax.checkpoint(layer), x_BLD, layers)
        return jnp.mean(jnp.square((x_BLD - y_BLD).astype(jnp.float32)))

    params = layer_shapes(4, 2048, 8192, 16)
    args = (params, moments(params), (array(8, 1024, 2048), array(8, 1024, 2048)))
    options = {"mesh": {}, "donate": (0, 1)}
    return Case("one_device", "one device", "h100_1x1", train_step(loss), args, options)


# An optimizer's step alone, on a state split over all GPUs.


class TrainState(NamedTuple):
    """Weights and moments, as a plain pytree."""

    params: Any
    opt_state: optax.OptState


def optimizer_step():
    params, specs = layer_shapes(16, 4096, 16_384, 32), FSDP["layers"]

    def step(state, gradients):
        updates, opt_state = OPTIMIZER.update(gradients, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state)

    split = TrainState(specs, moment_specs(params, specs))
    options = {
        "mesh": {"data": 8}, "in_specs": (split, specs), "out_shardings": split, "donate": (0,)
    }  # fmt: skip
    args = (TrainState(params, moments(params)), params)
    return Case("optimizer_step", "sharded optimizer", "h100_1x8", step, args, options)


TRAINING = (
    data_parallel(),
    fsdp(),
    zero(),
    data_and_tensor(),
    fsdp_and_tensor(),
    nnx_train_step(),
    linen_logical_axes(),
    accumulation(),
    tied_embedding(),
    one_device(),
    optimizer_step(),
)
