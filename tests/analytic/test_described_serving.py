"""Serving as others' software does it: measured loads, laws, bounds, and what it refuses."""

import dataclasses
from typing import Any

import pytest

from parallax.analytic.described.replica import Replica, layer_bytes, products
from parallax.analytic.described.serving import Load, running_requests, serve_cost
from parallax.analytic.described.serving_constants import serving_software
from parallax.cost import rates_of
from parallax.meshes.cluster import cluster
from parallax.models.config import ModelConfig
from parallax.models.layer_kinds import LatentAttention, LayerKind

H100 = cluster("h100_1x8")
RATES = rates_of("h100")
SOFTWARE = serving_software()
LLAMA = ModelConfig(
    "llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, mlp="gated", dtype="bfloat16"
)
QWEN = ModelConfig(
    "qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936, mlp="gated", dtype="bfloat16", qk_norm=True
)
MIXTRAL = LLAMA.replace(name="mixtral-8x7b", vocab_size=32000, num_experts=8)
WINDOWS = ModelConfig(
    "gpt-oss", 24, 2880, 64, 8, 64, 2880, 201088, mlp="gated", dtype="bfloat16", num_experts=32,
    experts_per_token=4, pattern=(LayerKind(window=128), LayerKind()),
)  # fmt: skip
LATENT = ModelConfig(
    "deepseek-v3", 61, 7168, 128, 128, 192, 2048, 129280, mlp="gated", dtype="bfloat16",
    num_experts=256, experts_per_token=8, shared_experts=1, dense_layers=3, dense_d_ff=18432,
    latent=LatentAttention(kv_rank=512, q_rank=1536, rope_dim=64, value_dim=128),
)  # fmt: skip
MODELS = {m.name: m for m in (LLAMA, QWEN, MIXTRAL, WINDOWS, LATENT)}


def estimated(config=LLAMA, software="vllm", **changes: int):
    load: dict[str, Any] = dict(tensor=2, batch=16, prompt_len=1024, output_len=256) | changes
    return serve_cost(config, cluster=H100, implementation=SOFTWARE[software], **load)


@pytest.mark.parametrize(
    ("config", "software", "load", "ttft_s", "tpot_s"),
    [
        (LLAMA, "trtllm", (1, 16, 2048, 512), 0.4132, 9.702e-3),
        (LLAMA, "trtllm", (4, 16, 4096, 256), 0.1881, 6.190e-3),
        (QWEN, "vllm", (4, 32, 1024, 512), 0.1999, 14.18e-3),
        (QWEN, "vllm", (8, 128, 1024, 128), 0.3240, 36.63e-3),
        (QWEN, "sglang", (8, 64, 2048, 128), 1.629, 19.62e-3),
    ],
)
def test_measured_loads(config, software, load, ttft_s, tpot_s):
    names = ("tensor", "batch", "prompt_len", "output_len")
    found = estimated(config, software, **dict(zip(names, load, strict=True)))
    assert found.tpot.seconds == pytest.approx(tpot_s, rel=0.1)
    assert found.ttft.seconds == pytest.approx(ttft_s, rel=0.25)  # most rows are within 15 %


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tensor", [1, 8])
@pytest.mark.parametrize("batch", [1, 32])
def test_no_faster_than_weights_cache_and_products(name, tensor, batch):
    config, gpu = MODELS[name], H100.gpu
    found = estimated(config, tensor=tensor, batch=batch)
    stacks = [(config.replace(dense_layers=0, dense_d_ff=0), config.stacked_layers)]
    stacks += [(config.of_dense_layers, config.dense_layers)] if config.dense_layers else []
    read = params = 0.0
    for stack, layers in stacks:
        for p in products(stack, tensor):
            read += 2 * layers * p.k * p.n * (p.per_token or 1)
            params += layers * p.k * p.n * (p.per_token or 1)
    cache = Replica(config, tensor, 1, H100, RATES).cache_bytes(1024)
    running = min(batch, found.running)
    assert found.tpot.seconds > (read + running * cache) / gpu.hbm_bytes_per_s
    assert found.ttft.seconds > 2 * 1024 * params / gpu.bf16_flops
    for cost in (found.ttft, found.tpot):
        assert sum(cost.terms.values()) == pytest.approx(cost.seconds)
        assert min(cost.terms.values()) >= 0


@pytest.mark.parametrize("software", SOFTWARE)
@pytest.mark.parametrize("name", MODELS)
def test_more_work_is_never_faster(software, name):
    def request(batch=16, prompt_len=1024, output_len=256):
        found = estimated(MODELS[name], software, tensor=8, batch=batch, prompt_len=prompt_len,
                          output_len=output_len)  # fmt: skip
        return found.tpot.seconds, found.ttft.seconds + output_len * found.tpot.seconds

    for sizes in (
        [request(prompt_len=n)[1] for n in (1, 100, 1024, 1500, 4096, 8192, 20000)],
        [request(output_len=n)[1] for n in (1, 2, 128, 1024)],
        [request(batch=b)[0] for b in (1, 2, 8, 31, 32, 33, 128)],
        [b / request(batch=b)[1] for b in (1, 2, 8, 31, 32, 33, 128)],  # requests per second
    ):
        assert sizes == sorted(sizes)


def test_tensor_divides_weights_and_replicates_few_heads():
    whole, eighth = (layer_bytes(LLAMA, n) for n in (1, 8))
    norms = 2 * 2 * LLAMA.d_model
    assert (whole - norms) / (eighth - norms) == 8
    few = LLAMA.replace(num_kv_heads=4)
    cache = [Replica(few, n, 1, H100, RATES).cache_bytes(1000) for n in (4, 8)]
    assert cache[0] == cache[1] == 32 * 1000 * 2 * 128 * 2
    assert estimated(few, tensor=8).tpot.seconds > 0


def test_queries_keys_and_values_are_one_product():
    assert sorted((p.k, p.n) for p in products(LLAMA, 4)) == [
        (1024, 4096), (3584, 4096), (4096, 6144 // 4), (4096, 2 * 14336 // 4),
    ]  # fmt: skip


def test_requests_wait_for_room_in_the_cache():
    load = Load(128, 4096, 1024)
    two, eight = (Replica(QWEN, n, 1, H100, RATES) for n in (2, 8))
    room = 0.8 * H100.gpu.memory_bytes - two.weight_bytes
    # 64 layers x 4 heads x 128 x keys and values x 2 bytes, at the mean length.
    assert running_requests(two, load, 0.8) == pytest.approx(room / (64 * 4 * 128 * 4 * 4608))
    assert running_requests(eight, load, 0.8) == 128
    full, free = (estimated(QWEN, tensor=n, **load._asdict()) for n in (2, 8))
    assert full.ttft.seconds > 20 * free.ttft.seconds


def test_stages_share_the_weights():
    one, four = (Replica(QWEN, 2, p, H100, RATES) for p in (1, 4))
    assert four.weight_bytes < one.weight_bytes / 3
    found = [estimated(QWEN, pipeline=p, batch=1).tpot.seconds for p in (1, 4)]
    assert found[0] < found[1] < 1.1 * found[0]  # one request passes all stages in turn


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(tensor=3), "tensor=3 does not divide num_heads=32"),
        (dict(tensor=16), "16 devices, cluster h100_1x8 has 8"),
        (dict(pipeline=40, tensor=1), "40 stages of 32 layers"),
        (dict(batch=0), "batch is 0"),
        (dict(output_len=-1), "output_len is -1"),
        (dict(config=LLAMA.replace(dtype="float32")), "dtype=float32"),
        (dict(config=LLAMA.replace(num_heads=24, num_kv_heads=6), tensor=4),
         "neither divides num_kv_heads=6"),
        (dict(config=LLAMA.replace(compression=("int8", "int8"))), "compression"),
    ],
)  # fmt: skip
def test_refusals(changes, said):
    with pytest.raises(ValueError, match=said):
        estimated(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(memory_share=1.2), "memory_share is 1.2"),
        (dict(step_tokens=0), "step_tokens"),
        (dict(step_s=-1e-3), "step_s is negative"),
    ],
)
def test_constants_are_checked(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SOFTWARE["vllm"], **changes)
