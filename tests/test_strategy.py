"""Strategies as data: they print, compare, fit in a file, and contradictions are named."""

import json

import pytest

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.attention_parts import HeadSlices, Local, Ring, Ulysses
from parallax.parallel.layer_parts import CacheTiled, Pipeline
from parallax.programs.decoding import Decoder
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps import make_step
from parallax.rules import Rules
from parallax.strategies import (
    STRATEGIES,
    build,
    cache_tiled,
    data_parallel,
    expert_parallel,
    hybrid,
    layerwise,
    ring_sequence,
    tensor_pipeline,
    two_level,
)
from parallax.strategy import Strategy
from parallax.workload import Workload
from tests.strategies.cases import SMALL

SLICED = two_level(2, 2).rules.replace(act_seq=("node", "seq"))
NESTED = [
    Strategy(
        "sliced_ring", MeshSpec({"node": 2, "seq": 2, "head_group": 2, "head_slice": 2}), SLICED,
        attention=HeadSlices("head_slice", "gather", Ring(("node", "seq"), "zigzag")),
    ),
    Strategy(
        "ulysses_ring", MeshSpec({"node": 2, "seq": 4}), Rules(act_seq=("node", "seq")),
        attention=Ulysses("seq", Ring("node")),
    ),
]  # fmt: skip
ALL = [build(name) for name in STRATEGIES] + [
    hybrid(layerwise(2, layers=(1, 2)), ring_sequence(4), expert_parallel(2, chunks=3)),
    ring_sequence(4, order="natural"),
    ring_sequence(16, nodes=2),
    *NESTED,
    tensor_pipeline(4, 2, microbatches=8, sequence_parallel_norms=True, reduce_dtype="float32"),
]


@pytest.mark.parametrize("strategy", ALL, ids=lambda s: f"{s.name}-{s.mesh}")
def test_file_round_trip(strategy, tmp_path):
    path = tmp_path / "strategy.json"
    strategy.save(path)
    assert Strategy.load(path) == strategy
    assert hash(Strategy.load(path)) == hash(strategy)


def edited(**changes):
    return json.dumps({**tensor_pipeline().to_dict(), **changes})


def with_inner(inner):
    return {"part": "ulysses", "axis": "seq", "inner": inner}


BAD_FILES = {
    "json": ("{", "not JSON"),
    "list": ("[]", "expected an object with fields, got list"),
    "fields": ("{}", "missing fields"),
    "unknown": (edited(colour="red"), r"unknown fields \['colour'\]"),
    "version": (edited(strategy_version=9), "strategy_version is 9, this Parallax reads 4"),
    "part": (edited(attention={"part": "star"}), "expected a 'part' of local, ring"),
    "part fields": (edited(attention={"part": "ring"}), "missing fields"),
    "inner": (edited(attention=with_inner("seq")), "inner: expected a 'part' of local, ring"),
    "inner part": (edited(attention=with_inner({"part": "scan"})), "inner: expected a 'part' of"),
    "inner fields": (edited(attention=with_inner({"part": "ring"})), "inner: missing fields"),
    "no mesh axis": (edited(attention={"part": "ring", "axis": [], "order": "zigzag"}), "Ring: "),
    "mesh": (edited(mesh="tensor=x"), "expected name=size"),
    "axis": (edited(mesh="tensor=8"), "the mesh has tensor"),
    "rules": (edited(rules={"mlp": "tensor"}), "rules: missing fields"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(name, tmp_path):
    text, message = BAD_FILES[name]
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Strategy.load(path)


def test_layers_in_slabs_are_data(tmp_path):
    tiled = cache_tiled(layerwise(4, handoff="overlapped"), 4, 16, round=2)
    tiled.save(tmp_path / "tiled.json")
    assert Strategy.load(tmp_path / "tiled.json") == tiled
    assert tiled.layers == CacheTiled(4, 16, 2, Pipeline("stage", None, "overlapped"))
    assert tiled.layers.ticks(8, 4) == 4 + 2 * 3
    with pytest.raises(ValueError, match="groups of 2 do not divide 7 microbatches"):
        tiled.layers.microbatch_groups(7, 4)
    assert tiled.layers.microbatch_groups(1, 4) == 1  # fewer than a round are one
    assert CacheTiled().microbatch_groups(8, 1) == 1
    assert CacheTiled(inner=Pipeline("stage")).microbatch_groups(8, 4) == 4
    with pytest.raises(ValueError, match="mlp must be an integer of at least 1, got 0"):
        CacheTiled(mlp=0)
    with pytest.raises(ValueError, match=r"inner must be Scan\(\) or Pipeline"):
        CacheTiled(inner=CacheTiled())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="'layerwise_tiled' has layers=CacheTiled"):
        cache_tiled(tiled, 1, 1)


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        (cache_tiled(data_parallel(2), 3, 1), {}, "tiles of attention .* Use a divisor of 8"),
        (cache_tiled(data_parallel(2), 8, 1), {"num_kv_heads": 2}, "Use a divisor of 2"),
        (cache_tiled(tensor_pipeline(4, 1, split_kv_heads=False), 2, 1), {"num_kv_heads": 2},
         "shares all of them with others. Use a divisor of 1"),
        (cache_tiled(data_parallel(2), 1, 3), {}, "do not divide the 128 columns"),
        (cache_tiled(two_level(2, 2), 1, 2), {}, "distributes heads itself"),
        (cache_tiled(data_parallel(2), 1, 2), {"num_experts": 4}, "experts cannot be cut"),
        (cache_tiled(data_parallel(2), 1, 2), {"compression": ("w8a8", "w8a8")}, "tile does not"),
        (cache_tiled(data_parallel(2), 1, 32), {"compression": ("int8", "int8+2:4")},
         "a weight tile of the MLP's last matrix"),
    ],
)  # fmt: skip
def test_slabs_that_cannot_be_cut_are_refused(made, changes, message):
    with pytest.raises(ValueError, match=message):
        ShardedTransformer(SMALL.replace(**changes), made, Workload(4, 16, 2))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        Strategy.load(tmp_path / "none.json")


def test_parts_and_rules_must_agree():
    seq = MeshSpec({"seq": 4})
    with pytest.raises(ValueError, match=r"attention=Local\(\) works over mesh axes none"):
        Strategy("s", seq, Rules(act_seq="seq"), attention=Local())
    with pytest.raises(ValueError, match="the rules map 'act_seq' to none"):
        Strategy("s", seq, Rules(), attention=Ring("seq"))
    with pytest.raises(ValueError, match=r"attention=Local\(\) .* the rules map 'head_dim' to"):
        Strategy("s", MeshSpec({"head_slice": 4}), Rules(head_dim="head_slice"))
    with pytest.raises(ValueError, match="the rules map 'head_dim' to none"):
        Strategy("s", MeshSpec({"head_slice": 4}), Rules(), attention=HeadSlices("head_slice"))
    with pytest.raises(ValueError, match="layers=Pipeline"):
        Strategy("s", MeshSpec({"stage": 2}), Rules(), layers=Pipeline("stage"))
    with pytest.raises(ValueError, match="'act_norm_seq' and 'lookup' are both split"):
        Strategy(
            "s", MeshSpec({"tensor": 2}),
            Rules(act_norm_seq="tensor", lookup="tensor", mlp="tensor"),
        )  # fmt: skip
    with pytest.raises(ValueError, match="map both to the same"):
        Strategy("s", MeshSpec({"tensor": 2}), Rules(act_norm_seq="tensor"))


def test_build_fills_a_cluster_or_takes_a_mesh():
    assert build("tensor_pipeline").mesh == MeshSpec({"stage": 2, "tensor": 8})
    assert build("tensor_pipeline", devices=32).mesh == MeshSpec({"stage": 4, "tensor": 8})
    assert build("ring_sequence", MeshSpec({"seq": 4})) == ring_sequence(4)
    double = build("ring_sequence", MeshSpec({"node": 2, "seq": 4}))
    assert double == ring_sequence(8, nodes=2)
    assert build("two_level").mesh == MeshSpec({"head_group": 4, "head_slice": 4})
    assert build("two_level", devices=32).mesh == MeshSpec({"head_group": 8, "head_slice": 4})
    assert build("two_level", MeshSpec({"head_slice": 2})) == two_level(1, 2)
    assert build("two_level", cluster="b200_2x8") == two_level(4, 4, cluster="b200_2x8")
    assert build("tensor_pipeline", MeshSpec({"tensor": 4})).mesh == MeshSpec({"tensor": 4})
    with pytest.raises(ValueError, match="unknown strategy 'star'. Use one of: tensor_pipeline"):
        build("star")
    with pytest.raises(ValueError, match="'ring_sequence' has no mesh axis 'tensor'"):
        build("ring_sequence", MeshSpec({"tensor": 4}))


def test_a_file_of_version_one_still_loads(tmp_path):
    data = dict(tensor_pipeline().to_dict(), strategy_version=1)
    del data["experts"], data["rules"]["expert"], data["kernels"]
    data["layers"] = {"part": "pipeline", "axis": "stage", "microbatches": None}
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    assert Strategy.load(path) == tensor_pipeline()


def test_a_file_of_version_two_asks_for_no_kernels(tmp_path):
    data = dict(tensor_pipeline().to_dict(), strategy_version=2)
    del data["kernels"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(data))
    assert Strategy.load(path) == tensor_pipeline()


def test_kernels_are_kept_in_the_file_and_checked(tmp_path):
    asked = tensor_pipeline().replace(kernels="mosaic")
    asked.save(tmp_path / "strategy.json")
    assert Strategy.load(tmp_path / "strategy.json") == asked
    with pytest.raises(ValueError, match="kernels must be one of mosaic, cudnn or None; got"):
        asked.replace(kernels="cuda")


def test_a_hybrid_is_the_product_of_meshes_and_the_union_of_rules():
    made = hybrid(layerwise(2), ring_sequence(4), tensor_pipeline(2, 1))
    assert str(made.mesh) == "stage=2,tensor=2,seq=4"
    table = made.rules.table()
    assert table["act_seq"] == ("seq",)
    assert table["vocab"] == ("stage", "tensor")
    assert table["heads"] == table["mlp"] == ("tensor",)
    assert made.rules.table("decode")["act_seq"] == ()
    assert made.attention == Ring("seq", "zigzag")
    assert isinstance(made.layers, Pipeline)
    nested = hybrid(two_level(2, 2), ring_sequence(4)).attention
    assert nested == HeadSlices("head_slice", inner=Ring("seq", "zigzag"))


BAD_HYBRIDS = {
    "one axis twice": ((ring_sequence(4), ring_sequence(4)), "'seq' is used twice"),
    "two pipelines": ((layerwise(2), tensor_pipeline(2, 2)), "'stage' is used twice"),
    "two wires": (
        (tensor_pipeline(2, 1, reduce_dtype="float32"),
         two_level(2, 1).replace(reduce_dtype="bfloat16")), "reduce_dtype is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_HYBRIDS)
def test_what_cannot_be_combined_is_named(name):
    parts, message = BAD_HYBRIDS[name]
    with pytest.raises(ValueError, match=message):
        hybrid(*parts)


def test_hybrids_by_name_need_a_mesh():
    made = build("ring_sequence+data_parallel", MeshSpec.parse("data=2,seq=8"))
    assert made == hybrid(ring_sequence(8), data_parallel(2))
    with pytest.raises(ValueError, match="needs a mesh that says how the devices are divided"):
        build("ring_sequence+data_parallel")
    with pytest.raises(ValueError, match="unknown strategy 'ring'"):
        build("ring+data_parallel")
    with pytest.raises(ValueError, match="has no mesh axis 'tensor'"):
        build("ring_sequence+data_parallel", MeshSpec.parse("tensor=2,seq=8"))


MANY = SMALL.replace(num_heads=64, num_kv_heads=8, head_dim=8)


@pytest.mark.parametrize(
    ("made", "copies"),
    [(tensor_pipeline(8, 1), 1), (tensor_pipeline(16, 1), 2), (two_level(16, 2), 2),
     (tensor_pipeline(4, 1, split_kv_heads=False), 1), (data_parallel(16), 1)],
)  # fmt: skip
def test_fewer_key_value_heads_than_devices_are_replicated(made, copies):
    """Each device stores the one head that its queries read, and computes all of them."""
    sharded = ShardedTransformer(MANY, made, Workload(16, 16))
    assert sharded.kv_copies == copies
    assert bool(sharded.strategy.split().over("kv_heads")) == (
        copies == 1 and bool(made.rules.kv_heads)
    )
    assert made.for_heads(64, 8) == sharded.strategy == sharded.strategy.for_heads(64, 8)
    decoder = Decoder(ShardedTransformer(MANY.replace(causal=True), made, Workload(16, 16)), 16)
    whole = 2 * MANY.num_layers * 16 * 32 * 8 * 8 * MANY.item_bytes
    assert decoder.kv_bytes() == copies * whole / made.mesh.size
    said = make_step(MANY, made, Workload(16, 16)).notes
    assert any("2 devices keep each head" in note for note in said) == (copies == 2)
    held = make_step(MANY, made, Workload(16, 16)).kv_cache_bytes()
    assert held == copies * whole / 2 / made.mesh.size


@pytest.mark.parametrize(("heads", "kv_heads", "tensor"), [(40, 10, 16), (40, 10, 8), (48, 12, 16)])
def test_heads_that_no_device_holds_whole_are_refused(heads, kv_heads, tensor):
    config = SMALL.replace(num_heads=heads, num_kv_heads=kv_heads, d_ff=16 * 16)
    with pytest.raises(ValueError, match=f"k_DGK dim 2 .'kv_heads', size {kv_heads}"):
        ShardedTransformer(config, tensor_pipeline(tensor, 1), Workload(16, 16))
