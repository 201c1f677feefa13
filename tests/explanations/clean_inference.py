"""Forward passes and shard_maps as users write them, without a fault: what they send is needed."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import parallax as px
from tests.explanations.case import Case, array
from tests.explanations.layers import TENSOR_LAYERS, attention, constrain, layer_shapes, mlp, norm

HEADS = P(None, None, "model")  # of [B, L, H, K]
LENGTH = P(None, "model")  # of [B, L, ...]

# Tensor parallelism over one node.


def tensor_parallel():
    def forward(layers, x_BLD):
        def layer(x_BLD, w):
            x_BLD = x_BLD + attention(norm(x_BLD, w["norm1"]), w)
            return constrain(x_BLD + mlp(norm(x_BLD, w["norm2"]), w), P()), None

        return lax.scan(layer, x_BLD, layers)[0]

    args = (layer_shapes(8, 4096, 16_384, 32), array(4, 4096, 4096))
    options = {
        "mesh": {"model": 8}, "in_specs": (TENSOR_LAYERS, P()), "out_shardings": P(),
        "donate": (1,),
    }  # fmt: skip
    return Case("tensor_parallel", "tensor parallelism", "h100_1x8", forward, args, options)


# The same with norms and residuals split over the sequence.


def sequence_parallel():
    def forward(layers, x_BLD):
        def layer(x_BLD, w):
            whole = constrain(norm(x_BLD, w["norm1"]), P())
            x_BLD = constrain(x_BLD + constrain(attention(whole, w), LENGTH), LENGTH)
            whole = constrain(norm(x_BLD, w["norm2"]), P())
            return constrain(x_BLD + constrain(mlp(whole, w), LENGTH), LENGTH), None

        return lax.scan(layer, x_BLD, layers)[0]

    args = (layer_shapes(8, 4096, 16_384, 32), array(4, 4096, 4096))
    options = {
        "mesh": {"model": 8}, "in_specs": (TENSOR_LAYERS, LENGTH), "out_shardings": LENGTH,
        "donate": (1,),
    }  # fmt: skip
    return Case("sequence_parallel", "sequence parallelism", "h100_1x8", forward, args, options)


# Ring attention over a long sequence.


def ring_attention():
    def forward(x_BLD, w):
        q, k, v = jnp.einsum("bld,cdhk->cblhk", x_BLD, w["qkv"])
        mixed = px.parallel.ring_attention(q, k, v, axis_name="seq", implementation="xla")
        return x_BLD + jnp.einsum("blhk,hkd->bld", mixed, w["out"])

    mapped = jax.shard_map(forward, in_specs=(P(None, "seq"), P()), out_specs=P(None, "seq"))
    weights = {"qkv": array(3, 2048, 16, 128), "out": array(16, 128, 2048)}
    options = {"mesh": {"seq": 8}, "in_specs": (P(None, "seq"), P()), "donate": (0,)}
    args = (array(1, 32_768, 2048), weights)
    return Case("ring_attention", "ring attention", "h100_1x8", mapped, args, options)


# Ulysses: heads for sequence before attention, and back.


def ulysses():
    def forward(x_BLD, w):
        qkv = jnp.einsum("bld,cdhk->cblhk", x_BLD, w["qkv"])
        q, k, v = lax.all_to_all(qkv, "seq", split_axis=3, concat_axis=2, tiled=True)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        mixed = lax.all_to_all(mixed, "seq", split_axis=1, concat_axis=2, tiled=True)
        return x_BLD + jnp.einsum("blhk,hkd->bld", mixed, w["out"])

    mapped = jax.shard_map(forward, in_specs=(P(None, "seq"), P()), out_specs=P(None, "seq"))
    weights = {"qkv": array(3, 2048, 16, 128), "out": array(16, 128, 2048)}
    options = {"mesh": {"seq": 8}, "in_specs": (P(None, "seq"), P()), "donate": (0,)}
    args = (array(2, 8192, 2048), weights)
    return Case("ulysses", "Ulysses", "h100_1x8", mapped, args, options)


# Experts, one on each GPU: tokens travel to their expert and back.


def experts():
    capacity = 1280  # tokens that a GPU may send to each expert

    def forward(x_TD, w):
        probability_TE = jax.nn.softmax((x_TD @ w["router"]).astype(jnp.float32))
        gate_T, expert_T = jnp.max(probability_TE, -1), jnp.argmax(probability_TE, -1)
        chosen_TE = jax.nn.one_hot(expert_T, 8, dtype=jnp.int32)
        place_T = jnp.sum((jnp.cumsum(chosen_TE, 0) - 1) * chosen_TE, -1)
        sent_ECD = jnp.zeros((8, capacity, x_TD.shape[1]), x_TD.dtype)
        sent_ECD = sent_ECD.at[expert_T, place_T].set(x_TD, mode="drop")
        held_ECD = lax.all_to_all(sent_ECD, "expert", 0, 0, tiled=True)
        done_ECD = mlp(held_ECD, {"up": w["up"][0], "down": w["down"][0]})
        back_ECD = lax.all_to_all(done_ECD, "expert", 0, 0, tiled=True)
        y_TD = back_ECD.at[expert_T, place_T].get(mode="fill", fill_value=0)
        return x_TD + y_TD * gate_T[:, None].astype(x_TD.dtype)

    specs = (P("expert"), {"router": P(), "up": P("expert"), "down": P("expert")})
    mapped = jax.shard_map(forward, in_specs=specs, out_specs=P("expert"))
    weights = {
        "router": array(4096, 8), "up": array(8, 4096, 16_384), "down": array(8, 16_384, 4096)
    }  # fmt: skip
    options = {"mesh": {"expert": 8}, "in_specs": specs, "donate": (0,)}
    args = (array(65_536, 4096), weights)
    return Case("experts", "MoE all-to-all", "h100_1x8", mapped, args, options)


# Experts on every GPU, each with its own tokens: nothing is sent.


def ragged_experts():
    def forward(x_TD, w):
        expert_T = jnp.argmax(x_TD @ w["router"], -1)
        order_T = jnp.argsort(expert_T)
        sizes_E = jnp.bincount(expert_T, length=8)
        h_TF = jax.nn.gelu(lax.ragged_dot(x_TD[order_T], w["up"], sizes_E))
        y_TD = lax.ragged_dot(h_TF, w["down"], sizes_E)
        return x_TD + jnp.zeros_like(x_TD).at[order_T].set(y_TD)

    mapped = jax.shard_map(forward, in_specs=(P("data"), P()), out_specs=P("data"))
    weights = {
        "router": array(1024, 8), "up": array(8, 1024, 4096), "down": array(8, 4096, 1024)
    }  # fmt: skip
    options = {"mesh": {"data": 8}, "in_specs": (P("data"), P()), "donate": (0,)}
    args = (array(131_072, 1024), weights)
    return Case("ragged_experts", "MoE data parallelism", "h100_1x8", mapped, args, options)


# A pipeline of 8 stages: activations travel one stage a step, pooled results leave the last.


def pipeline():
    def forward(x_MBC, w):
        stage, hops = lax.axis_index("stage"), [(i, i + 1) for i in range(7)]
        layer = {"up": w["up"][0], "down": w["down"][0]}

        def tick(carry, t):
            x_BD, pooled_MD = carry
            fresh_BC = lax.dynamic_index_in_dim(x_MBC, jnp.minimum(t, 31), keepdims=False)
            x_BD = jnp.where(stage == 0, fresh_BC @ w["enter"], x_BD)
            x_BD = x_BD + mlp(x_BD, layer)
            pooled_D = jnp.mean(x_BD, 0) * (stage == 7)
            pooled_MD = lax.dynamic_update_index_in_dim(pooled_MD, pooled_D, t - 7, 0)
            return (lax.ppermute(x_BD, "stage", hops), pooled_MD), None

        start = jnp.zeros((1024, 4096), jnp.bfloat16), jnp.zeros((32, 4096), jnp.bfloat16)
        start = lax.pcast(start, "stage", to="varying")
        (_, pooled_MD), _ = lax.scan(tick, start, jnp.arange(39))
        return lax.psum(pooled_MD, "stage")

    specs = (P(), {"enter": P(), "up": P("stage"), "down": P("stage")})
    mapped = jax.shard_map(forward, in_specs=specs, out_specs=P())
    weights = {
        "enter": array(64, 4096), "up": array(8, 4096, 16_384), "down": array(8, 16_384, 4096)
    }  # fmt: skip
    options = {"mesh": {"stage": 8}, "in_specs": specs}
    args = (array(32, 1024, 64), weights)
    return Case("pipeline", "pipeline", "h100_1x8", mapped, args, options)


# Explicit axes: the types say where the one sum per layer is.


def explicit_axes():
    def forward(layers, x_BLD):
        def layer(x_BLD, w):
            h_BLF = jax.nn.gelu(jnp.einsum("bld,df->blf", x_BLD, w["up"]))
            out = P("data", None, None)
            return x_BLD + jnp.einsum("blf,fd->bld", h_BLF, w["down"], out_sharding=out), None

        return lax.scan(layer, x_BLD, layers)[0]

    args = ({"up": array(8, 4096, 16_384), "down": array(8, 16_384, 4096)}, array(16, 2048, 4096))
    options = {
        "mesh": AbstractMesh((2, 8), ("data", "model"), axis_types=(AxisType.Explicit,) * 2),
        "in_specs": ({"up": P(None, None, "model"), "down": P(None, "model")}, P("data")),
        "donate": (1,),
    }  # fmt: skip
    return Case("explicit_axes", "Explicit axes", "h100_2x8", forward, args, options)


# Decoding: the cache is donated, and each layer writes one row of it in place.


def decode():
    def step(layers, cache, x_BD, position):
        def layer(carry, w):
            x_BD, keys, values, i = carry
            q, k, v = jnp.einsum("bd,cdhk->cbhk", norm(x_BD, w["norm1"]), w["qkv"])
            start = (i, 0, position, 0, 0)
            keys = lax.dynamic_update_slice(keys, k[None, :, None], start)
            values = lax.dynamic_update_slice(values, v[None, :, None], start)
            mixed = jax.nn.dot_product_attention(
                q[:, None], keys[i], values[i],
                key_value_seq_lengths=jnp.full(x_BD.shape[0], position + 1),
            )  # fmt: skip
            x_BD = x_BD + jnp.einsum("bhk,hkd->bd", mixed[:, 0], w["out"])
            return (x_BD + mlp(norm(x_BD, w["norm2"]), w), keys, values, i + 1), None

        (x_BD, keys, values, _), _ = lax.scan(layer, (x_BD, *cache, 0), layers)
        return x_BD, (keys, values)

    cache = (array(16, 32, 4096, 32, 128), array(16, 32, 4096, 32, 128))
    args = (layer_shapes(16, 4096, 16_384, 32), cache, array(32, 4096), array(dtype=jnp.int32))
    split = P(None, None, None, "model")
    options = {
        "mesh": {"model": 8}, "in_specs": (TENSOR_LAYERS, split, P(), P()),
        "out_shardings": (P(), split), "donate": (1,),
    }  # fmt: skip
    return Case("decode", "decoding", "h100_1x8", step, args, options)


# Batch normalization over all GPUs: sums of a few thousand numbers.


def batch_statistics():
    def forward(x_BD, w):
        def layer(x_BD, w):
            h_BF = (x_BD @ w["up"]).astype(jnp.float32)
            both = jnp.stack([jnp.mean(h_BF, 0), jnp.mean(jnp.square(h_BF), 0)])
            mean_F, square_F = lax.pmean(both, "data")
            h_BF = (h_BF - mean_F) * lax.rsqrt(square_F - jnp.square(mean_F) + 1e-5)
            return x_BD + jax.nn.relu(h_BF).astype(x_BD.dtype) @ w["down"], None

        return lax.scan(layer, x_BD, w)[0]

    mapped = jax.shard_map(forward, in_specs=(P("data"), P()), out_specs=P("data"))
    weights = {"up": array(8, 512, 2048), "down": array(8, 2048, 512)}
    options = {"mesh": {"data": 16}, "in_specs": (P("data"), P()), "donate": (0,)}
    args = (array(524_288, 512), weights)
    return Case("batch_statistics", "small statistics", "h100_2x8", mapped, args, options)


INFERENCE = (
    tensor_parallel(),
    sequence_parallel(),
    ring_attention(),
    ulysses(),
    experts(),
    ragged_experts(),
    pipeline(),
    explicit_axes(),
    decode(),
    batch_statistics(),
)
