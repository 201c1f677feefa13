"""Training steps as users write them, each with one planted fault and its fixed version.

A section makes one program: called with mended=True, it makes the same program without the fault.
The line at fault ends in `# fault: NAME`.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from tests.explanations.case import Case, Mended, array, marked
from tests.explanations.layers import (
    FSDP,
    TENSOR,
    attention,
    constrain,
    cross_entropy,
    decoder,
    decoder_loss,
    mlp,
    norm,
    tensor_layer,
    tokens,
    train_step,
    trained,
)

# FSDP with remat: the weights are split, AdamW's state was put on every GPU.


def replicated_optimizer_state():
    params = decoder(8, D=4096, F=16_384, H=32, V=32_768)
    step, batch, mesh = train_step(decoder_loss), tokens(16, 2048), {"data": 8}
    args, options = trained(params, FSDP, batch, mesh, state_specs=P())
    fixed = Mended(step, *trained(params, FSDP, batch, mesh))
    return Case(
        "replicated_optimizer_state", "replicated optimizer state", "h100_1x8", step, args, options,
        argument="opt_state", fixed=fixed, saves="memory",
    )  # fmt: skip


# FSDP: nothing says how the embedded tokens are split, so the table's split wins.


def make_fsdp_loss(mended):
    def loss(params, batch):
        inputs, labels = batch
        x_BLD = params["embed"][inputs]  # fault: missing_constraint
        if mended:
            x_BLD = constrain(x_BLD, P("data", None, None))

        def layer(x_BLD, w):
            x_BLD = x_BLD + attention(norm(x_BLD, w["norm1"]), w)
            return x_BLD + mlp(norm(x_BLD, w["norm2"]), w), None

        x_BLD, _ = lax.scan(jax.checkpoint(layer), x_BLD, params["layers"])
        return cross_entropy(x_BLD @ params["head"], labels)

    return loss


def missing_constraint():
    params = decoder(4, D=4096, F=16_384, H=32, V=32_768)
    args, options = trained(params, FSDP, tokens(16, 2048), {"data": 8})
    return Case(
        "missing_constraint", "missing constraint", "h100_1x8", train_step(make_fsdp_loss(False)),
        args, options, **marked(__file__, "missing_constraint"),
        fixed=Mended(train_step(make_fsdp_loss(True)), args, options), saves="sent bytes",
    )  # fmt: skip


# Data parallelism in one shard_map: bfloat16 gradients are summed in float32.


def make_data_parallel(mended):
    def loss(weights, x_BD, y_BD):
        def layer(x_BD, w):
            return x_BD + jnp.tanh(x_BD @ w["up"]) @ w["down"], None

        x_BD, _ = lax.scan(layer, x_BD, weights)
        return jnp.mean(jnp.square((x_BD - y_BD).astype(jnp.float32)))

    def gradient_sum(g):
        if mended:
            return lax.pmean(g, "data").astype(jnp.float32)
        return lax.pmean(g.astype(jnp.float32), "data")  # fault: wide_reduction

    def local(weights, x_BD, y_BD):
        varying = jax.tree.map(lambda w: lax.pcast(w, "data", to="varying"), weights)
        gradients = jax.tree.map(gradient_sum, jax.grad(loss)(varying, x_BD, y_BD))
        return jax.tree.map(
            lambda w, g: (w.astype(jnp.float32) - 1e-3 * g).astype(w.dtype), weights, gradients
        )

    return jax.shard_map(local, in_specs=(P(), P("data"), P("data")), out_specs=P())


def wide_reduction():
    weights = {"up": array(8, 4096, 8192), "down": array(8, 8192, 4096)}
    args = (weights, array(65_536, 4096), array(65_536, 4096))
    options = {"mesh": {"data": 16}, "in_specs": (P(), P("data"), P("data")), "donate": (0,)}
    return Case(
        "wide_reduction", "float32 reduction", "h100_2x8", make_data_parallel(False), args, options,
        **marked(__file__, "wide_reduction"), fixed=Mended(make_data_parallel(True), args, options),
        saves="sent bytes",
    )  # fmt: skip


# Gradient accumulation: every microbatch's gradient is summed over the GPUs.


def stack_loss(weights, batch):
    x_BD, y_BD = batch

    def layer(x_BD, w):
        return x_BD + jnp.tanh(x_BD @ w["up"]) @ w["down"], None

    x_BD, _ = lax.scan(layer, x_BD, weights)
    return jnp.mean(jnp.square((x_BD - y_BD).astype(jnp.float32)))


def make_accumulation(mended):
    def gradients(weights, batch):
        if mended:
            weights = jax.tree.map(lambda w: lax.pcast(w, "data", to="varying"), weights)

        def add(total, micro):
            g = jax.grad(stack_loss)(weights, micro)  # fault: sum_per_microbatch
            return jax.tree.map(jnp.add, total, g), None

        total, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, weights), batch)
        return jax.tree.map(lambda g: lax.pmean(g, "data"), total) if mended else total

    def step(weights, batch):
        found = gradients
        if mended:
            found = jax.shard_map(gradients, in_specs=(P(), P(None, "data")), out_specs=P())
        return jax.tree.map(lambda w, g: w - 1e-3 * g, weights, found(weights, batch))

    return step


def sum_per_microbatch():
    weights = {"up": array(8, 4096, 8192), "down": array(8, 8192, 4096)}
    batch = (array(8, 16_384, 4096), array(8, 16_384, 4096))
    args = (weights, batch)
    options = {
        "mesh": {"data": 16}, "in_specs": (P(), P(None, "data")), "out_shardings": P(),
        "donate": (0,),
    }  # fmt: skip
    return Case(
        "sum_per_microbatch", "gradient sum per microbatch", "h100_2x8", make_accumulation(False),
        args, options, **marked(__file__, "sum_per_microbatch"),
        fixed=Mended(make_accumulation(True), args, options), saves="sent bytes",
    )  # fmt: skip


# Tensor parallel training: every GPU makes and keeps the logits of the whole vocabulary.


def make_tensor_loss(mended):
    vocabulary = "model" if mended else None

    def loss(params, batch):
        inputs, labels = batch
        x_BLD = constrain(params["embed"][inputs], P("data", None, None))
        x_BLD, _ = lax.scan(tensor_layer, x_BLD, params["layers"])
        logits_BLV = x_BLD @ params["head"]
        logits_BLV = constrain(logits_BLV, P("data", None, vocabulary))  # fault: unsharded_logits
        return cross_entropy(logits_BLV, labels)

    return loss


def unsharded_logits():
    params = decoder(4, D=4096, F=16_384, H=32, V=131_072)
    args, options = trained(params, TENSOR, tokens(8, 2048), {"data": 2, "model": 4})
    return Case(
        "unsharded_logits", "unsharded logits", "h100_1x8", train_step(make_tensor_loss(False)),
        args, options, **marked(__file__, "unsharded_logits"),
        fixed=Mended(train_step(make_tensor_loss(True)), args, options), saves="memory",
    )  # fmt: skip


# A tensor parallel training step that donates nothing: old and new state at once.


def nothing_donated():
    params = decoder(4, D=4096, F=16_384, H=32, V=32_768)
    step = train_step(make_tensor_loss(True))
    args, options = trained(params, TENSOR, tokens(8, 1024), {"data": 2, "model": 4})
    return Case(
        "nothing_donated", "no donation", "h100_1x8", step, args, options | {"donate": ()},
        argument="params", fixed=Mended(step, args, options), saves="memory",
    )  # fmt: skip
