"""The table of a model's parameters, against textbook sizes; it is the only such list."""

import itertools
import math
import subprocess
import sys
from typing import Any

import jax
import pytest
from flax import nnx

from parallax.analytic.packed_weights import PackedWeights, device_matrices, layer_weight_bytes
from parallax.models import parameters
from parallax.models.block import Mlp
from parallax.models.compressing import packed_weights
from parallax.models.config import ModelConfig
from parallax.models.flops import model_flops
from parallax.models.layer_kinds import LatentAttention, LayerKind, Router
from parallax.models.parameters import (
    end_parameters,
    layer_matrices,
    layer_parameters,
    model_parameters,
    of_laptop_size,
)
from parallax.models.transformer import abstract_transformer
from parallax.models.weights import weight
from parallax.parallel.layer_parts import Pipeline
from parallax.parallel.split import UNSPLIT
from parallax.placement.footprint import layer_footprints, part_bytes
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import expert_parallel, tensor_pipeline
from parallax.workload import Workload

DENSE = ModelConfig(
    name="dense", num_layers=3, d_model=64, num_heads=8, num_kv_heads=4, head_dim=8, d_ff=96,
    vocab_size=300, mlp="gated", dtype="float32", max_seq_len=40,
)  # fmt: skip
EXPERTS = DENSE.replace(name="experts", num_experts=8, experts_per_token=2)
CONFIGS = {
    "-".join(map(str, (mlp, norm, positions, *flags))): DENSE.replace(
        mlp=mlp, norm=norm, positions=positions, qk_norm=flags[0], bias=flags[1],
        tie_embeddings=flags[2], num_experts=flags[3],
    )
    for mlp, norm, positions, flags in (
        ("gelu", "layernorm", "learned", (False, True, True, 0)),
        ("gated", "rmsnorm", "rope", (True, False, False, 0)),
        ("gated", "layernorm", "none", (True, True, False, 0)),
        ("gelu", "rmsnorm", "rope", (False, False, True, 8)),
        ("gated", "rmsnorm", "learned", (True, False, False, 8)),
    )
}  # fmt: skip

CONFIGS["dense first"] = EXPERTS.replace(num_layers=5, dense_layers=2, dense_d_ff=40)
ROUTER = Router("sigmoid", bias="choice")
CONFIGS["mixture"] = EXPERTS.replace(bias=True, shared_experts=2, router=ROUTER)
CONFIGS["learned bias"] = EXPERTS.replace(bias=True, mlp="gelu", router=Router(bias="logits"))


def by_hand(config):
    """Parameters of (one layer, everything else), by the textbook."""
    d, k = config.d_model, config.head_dim
    gates = 2 if config.mlp == "gated" else 1
    attention = d * k * 2 * (config.num_heads + config.num_kv_heads) + 2 * k * config.qk_norm
    mlp = (gates + 1) * d * config.d_ff
    if config.bias:
        attention += k * (config.num_heads + 2 * config.num_kv_heads) + d
        mlp += gates * config.d_ff + d
    if config.num_experts:
        width = config.shared_experts * config.d_ff
        shared = (gates + 1) * d * width + (gates * width + d) * config.bias if width else 0
        has_bias = config.router is not None and config.router.bias != "none"
        mlp = config.num_experts * (mlp + d + has_bias) + shared
    norm = d * (2 if config.norm == "layernorm" else 1)
    tables = (1 if config.tie_embeddings else 2) * config.vocab_size * d
    tables += config.max_seq_len * d if config.positions == "learned" else 0
    if config.dense_layers:
        first = attention + (gates + 1) * d * config.dense_d_ff + 2 * norm
        tables += config.dense_layers * first
    return attention + mlp + 2 * norm, norm + tables


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_the_textbooks_and_the_models(name):
    config = CONFIGS[name]
    layer, ends = by_hand(config)
    assert config.layer_params == layer
    assert config.num_params == 3 * layer + ends
    flat: dict[Any, Any] = dict(nnx.to_flat_state(abstract_transformer(config)[1]))
    listed = {p.path: p for p in model_parameters(config)}
    assert listed.keys() == flat.keys()
    for path, leaf in flat.items():
        stacked = path[0] == "layers"
        assert leaf.get_value().shape[stacked:] == listed[path].shape
        assert tuple(leaf.get_metadata()["out_sharding"])[stacked:] == listed[path].axes


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "dense first"])
def test_what_formats_store_is_what_the_table_says(name):
    config = CONFIGS[name]
    packed = packed_weights(config.replace(compression=("int8", "int8")))
    assert {path: tuple(w.inputs) for path, w in packed.items()} == {
        m.path: m.inputs for m in layer_matrices(config)
    }


def test_flops_of_a_token_by_hand():
    d, f = 64, 96
    attention = d * 8 * 2 * (8 + 4)
    assert sum(p.flops_per_token for p in layer_parameters(DENSE)) == 2 * (attention + 3 * d * f)
    routed = 2 * 3 * d * f + d * 8
    assert sum(p.flops_per_token for p in layer_parameters(EXPERTS)) == 2 * (attention + routed)
    mixture = EXPERTS.replace(bias=True, shared_experts=3)
    both = routed + 3 * 3 * d * f
    assert sum(p.flops_per_token for p in layer_parameters(mixture)) == 2 * (attention + both)
    assert sum(p.flops_per_token for p in end_parameters(DENSE)) == 2 * d * 300
    tied = DENSE.replace(tie_embeddings=True, positions="learned")
    assert model_flops(tied, 3, 7) == model_flops(DENSE, 3, 7)


def test_matrices_stand_as_a_token_meets_them():
    names = [m.name for m in layer_matrices(EXPERTS)]
    assert names == ["q", "k", "v", "out", "up", "gate", "down"]
    assert [m.matrices() for m in layer_matrices(EXPERTS, "mlp")] == [
        (64, 96, 8), (64, 96, 8), (96, 64, 8),
    ]  # fmt: skip
    assert layer_matrices(DENSE, "attention")[-1].matrices() == (64, 64, 1)
    assert {p.name for p in layer_parameters(EXPERTS) if p.part is None and p.inputs} == {"router"}


def test_a_devices_share():
    found = device_matrices(DENSE, tensor_pipeline(4, 1).split())
    assert found["q"] == (64, 16, 1)
    assert found["v"] == (64, 8, 1)
    assert found["out"] == (16, 64, 1)
    assert found["down"] == (24, 64, 1)
    assert device_matrices(EXPERTS, expert_parallel(4).split())["up"] == (64, 96, 2)


def test_shared_experts_are_an_mlp_beside_the_others():
    config = CONFIGS["mixture"].replace(dtype="float16")
    names = [m.name for m in layer_matrices(config, "mlp")]
    assert names == ["up", "gate", "shared.up", "shared.gate", "down", "shared.down"]
    found = device_matrices(config, tensor_pipeline(4, 1).split(), "mlp")
    assert found["shared.up"] == (64, 48, 1)
    assert found["up"] == (64, 24, 8)
    replicated = device_matrices(config, expert_parallel(4).split(), "mlp")
    assert replicated["shared.down"] == (192, 64, 1)
    (layer, *_) = layer_footprints(config, "float16", tokens=10)
    assert layer.weights == 2 * (config.layer_params + 8)  # a bias of the choice is float32
    assert layer.activations == 10 * 2 * (2 * 64 + 2 * 2 * 96 + 2 * 192)
    strategy, load = expert_parallel(4), Workload(4, 8)
    held = ShardedTransformer(config, strategy, load).shard_bytes()["layers"]["mlp"]
    assert sum(jax.tree.leaves(held["shared"])) == 3 * 2 * (3 * 64 * 192 + 2 * 192 + 64)
    assert sum(jax.tree.leaves(held["choice_bias_E"])) == 3 * 4 * 8


def test_dense_first_layers_count_as_a_dense_model_s():
    config = CONFIGS["dense first"]
    first, *_, last = layer_footprints(config, config.dtype, tokens=3, cached_tokens=5)
    assert first == layer_footprints(config.of_dense_layers, config.dtype, tokens=3,
                                     cached_tokens=5)[0]  # fmt: skip
    assert last.weights == 4 * config.layer_params
    with pytest.raises(ValueError, match="compression of a model with dense_layers"):
        config.replace(compression=("int8", "int8"))
    dense, routed = config.of_dense_layers, config.replace(dense_layers=0, dense_d_ff=0)

    def of(config, layers):
        return model_flops(config.replace(num_layers=layers), 2, 7)

    assert of(config, 5) == of(routed, 3) + of(dense, 2) - 2 * 2 * 64 * 300  # one unembedding


def test_models_that_differ_elsewhere_share_one_table():
    parameters._read.cache_clear()
    for layers, dtype in itertools.product((1, 2, 48), ("float16", "float64")):
        more = DENSE.replace(name=dtype, num_layers=layers, dtype=dtype)
        assert more.num_params == layers * DENSE.layer_params + by_hand(DENSE)[1]
    assert parameters._read.cache_info().misses == 1


def test_a_new_matrix_is_written_in_one_place(monkeypatch):
    """A matrix that a layer gains is in every size, FLOP, footprint, format and estimate."""

    class Wider(Mlp):
        def __init__(self, config, *, rngs):
            super().__init__(config, rngs=rngs)
            shape, axes = (config.d_model, config.d_ff), ("embed", "mlp")
            self.extra_DF = weight(config, rngs, shape, axes, config.d_model, part="mlp")

    def sizes(config):
        stored = part_bytes(config, "mlp", "int8")
        (layer, *_) = layer_footprints(config, config.dtype)
        _, dense, _ = layer_weight_bytes(config, UNSPLIT, PackedWeights())
        return (
            config.num_params, model_flops(config, 1, 1), stored, layer.weights, dense,
            len(device_matrices(config, UNSPLIT)),
        )  # fmt: skip

    config = DENSE.replace(num_layers=1)
    before = sizes(config)
    monkeypatch.setattr("parallax.models.block.Mlp", Wider)
    caches = parameters._read, abstract_transformer, packed_weights
    for cache in caches:
        cache.cache_clear()
    try:
        after = sizes(config)
        packed = packed_weights(config.replace(compression=("int8", "int8")))
    finally:
        for cache in caches:
            cache.cache_clear()
    extra = 64 * 96
    more = [b - a for a, b in zip(before, after, strict=True)]
    assert more == [extra, 2 * extra, extra + 4 * 96, 4 * extra, 4 * extra, 1]
    assert ("layers", "mlp", "extra_DF") in packed


def test_two_matrices_of_one_name_are_refused(monkeypatch):
    class Twice(Mlp):
        def __init__(self, config, *, rngs):
            super().__init__(config, rngs=rngs)
            shape, axes = (config.d_model, config.d_ff), ("embed", "mlp")
            self.out_DF = weight(config, rngs, shape, axes, config.d_model, part="mlp")

    monkeypatch.setattr("parallax.models.block.Mlp", Twice)
    with pytest.raises(ValueError, match=r"attention\.out_HKD and layers\.mlp\.out_DF .* 'out'"):
        model_parameters(DENSE.replace(d_ff=97))


def test_a_config_needs_no_flax_until_it_is_asked():
    code = (
        "import sys\n"
        "from parallax.models.config import ModelConfig\n"
        "import parallax.models.parameters, parallax.models.flops, parallax.placement.footprint\n"
        "assert 'flax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_array_is_made():
    parameters._read.cache_clear()
    before = len(jax.live_arrays())
    assert DENSE.replace(d_model=2**20).num_params > 1e8
    assert len(jax.live_arrays()) == before


def test_a_deep_model_keeps_its_kinds_of_layers_and_what_stages_leave_over():
    deep = DENSE.replace(num_heads=64, num_kv_heads=64, d_model=512, d_ff=2048, num_layers=61)
    assert of_laptop_size(deep, 1, 16).num_layers > 2
    assert of_laptop_size(deep, 4, 16).num_layers == 4 + 1
    assert of_laptop_size(deep.replace(num_layers=63), 4, 16).num_layers == 4 + 1
    assert of_laptop_size(deep, 64, 64) == deep
    assert of_laptop_size(DENSE, 2, 16) == DENSE
    assert of_laptop_size(deep, 2, 16).num_params < 1.5e6
    local, every = LayerKind(window=8), LayerKind()
    for layers, pattern, stages, few in (
        (62, (local,) * 5 + (every,), 2, 1),  # a part of a pattern
        (60, (local, local, every), 2, 0),
        (63, (local, local, every), 2, 2),  # a pattern
        (24, (local, every), 2, 0),
        (80, (), 8, 0),
    ):
        small = of_laptop_size(deep.replace(num_layers=layers, pattern=pattern), stages, 16)
        assert small.kinds == ((local, every) if pattern else (every,))
        assert small.num_layers % (stages * len(small.kinds)) == few
        assert small.num_params < 5e6
        assert len(Pipeline("stage").groups(small.num_layers, stages, len(small.kinds))) == stages


def test_a_small_mixture_divides_and_routes_as_the_whole_one():
    whole = EXPERTS.replace(
        d_model=448, d_ff=128, num_layers=61, num_experts=256, experts_per_token=8, dense_layers=3,
        dense_d_ff=1152, router=Router(groups=8, groups_per_token=4), embed_scale=21.0,
    )  # fmt: skip
    small = of_laptop_size(whole, 2, 16)
    # 32 experts in 8 groups: a token chooses 8 of the 16 in its 4 groups.
    assert (small.d_model, small.num_experts, small.num_layers) == (64, 32, 3 + 4)
    assert small.embed_scale == pytest.approx(21 * (64 / 448) ** 0.5)
    assert small.d_ff % 64 == 0
    assert (small.router, small.experts_per_token) == (whole.router, 8)
    assert of_laptop_size(whole, 2, 16, expert_parts=64).num_experts == 64
    odd = whole.replace(num_experts=160, router=None, d_model=336, d_ff=368)
    assert of_laptop_size(odd, 2, 16).num_experts == 16
    assert of_laptop_size(odd, 2, 16, expert_parts=32).num_experts == 32
    assert of_laptop_size(odd, 2, 16, expert_parts=20).num_experts == 20
    assert of_laptop_size(odd, 2, 16).d_model % 16 == 0
    assert of_laptop_size(odd.replace(num_experts=12), 2, 16, expert_parts=4).num_experts == 12


@pytest.mark.parametrize(
    ("heads", "kv_heads", "devices", "few"),
    [
        (64, 8, 16, (16, 8)),
        (64, 8, 32, (32, 8)),
        (28, 4, 16, (8, 4)),
        (40, 8, 16, (16, 8)),
        (32, 32, 16, (16, 16)),
        (9, 3, 16, (6, 3)),
        (7, 7, 16, (2, 2)),
        (8, 1, 16, (8, 1)),
    ],
)
def test_few_heads_divide_and_share_keys_as_the_whole_models(heads, kv_heads, devices, few):
    whole = DENSE.replace(num_heads=heads, num_kv_heads=kv_heads, d_model=512, num_layers=61)
    small = of_laptop_size(whole, 1, devices)
    assert (small.num_heads, small.num_kv_heads) == few


@pytest.mark.parametrize("head_dim", [64, 96, 128, 192, 256])
def test_a_small_model_divides_as_the_whole_one(head_dim):
    whole = EXPERTS.replace(
        d_model=head_dim * 20, head_dim=head_dim, num_kv_heads=8, d_ff=2880, dense_layers=1,
        dense_d_ff=8192, latent=LatentAttention(512, 1536, 32, 64), embed_scale=64.0,
    )  # fmt: skip
    small = whole.small()
    for name in ("d_model", "d_ff", "dense_d_ff"):
        assert getattr(small, name) % math.gcd(getattr(whole, name), 32) == 0
    assert small.latent is not None
    assert small.latent.kv_rank % 16 == 0
    assert small.embed_scale == pytest.approx(64 * (small.d_model / whole.d_model) ** 0.5)
