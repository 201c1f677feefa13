"""The meshes that an error proposes are ones that can run."""

import pytest

import parallax as px
from parallax.commands.resolve import resolve
from parallax.engine.texts import make_generator
from parallax.meshes.mesh import MeshSpec
from parallax.programs.sharded_model import ShardedTransformer
from parallax.requests.compare import CompareRequest
from parallax.requests.naming import resolve_strategy
from parallax.strategies.dividing import dividing_meshes, sharded_over, with_meshes
from parallax.workload import Workload

# As Qwen2's smallest: 14 heads, 2 key/value heads.
CONFIG = px.ModelConfig(
    name="fourteen", num_layers=24, d_model=896, num_heads=14, num_kv_heads=2, head_dim=64,
    d_ff=4864, vocab_size=256,
)  # fmt: skip


def check(strategy):
    return ShardedTransformer(CONFIG, strategy, Workload(16, 64))


def test_only_meshes_that_divide_are_named():
    assert dividing_meshes("tensor_pipeline", 16, check) == ("stage=8,tensor=2", "stage=16")
    assert dividing_meshes("ulysses", 16, check) == ()
    assert dividing_meshes("of_a_file", 16, check) == ()
    (first, *_) = dividing_meshes("tensor_pipeline+data_parallel", 16, check, most=1)
    check(resolve_strategy("tensor_pipeline+data_parallel", first, 16))


def test_an_error_keeps_its_words_and_names_the_largest_mesh_that_can_run():
    strategy = resolve_strategy("ulysses", MeshSpec({"seq": 16}), 16)
    said = r"does not divide 14 query heads.* Meshes of 2 that divide: seq=2 \(--mesh\)\.$"
    with pytest.raises(ValueError, match=said):
        sharded_over(strategy, check)
    assert with_meshes(ValueError("No."), "ulysses", (16, 15), check) == "No."


def test_a_mesh_that_nobody_asked_for_is_one_that_divides():
    request = CompareRequest(
        model=CONFIG, strategies=("tensor_pipeline", "ring_sequence"), lenses=("verify", "compile")
    )
    found = resolve(request)
    meshes = {strategy.name: str(strategy.mesh) for strategy, _ in found.cases}
    # 14 heads, 2 of keys: two devices at most split them.
    assert meshes == {"tensor_pipeline": "stage=8,tensor=2", "ring_sequence": "seq=16"}
    assert found.small_config.num_layers % 8 == 0
    assert list(found.moved) == ["tensor_pipeline"]
    said = "its mesh is stage=8,tensor=2, not stage=2,tensor=8 as usual: "
    assert found.moved["tensor_pipeline"].startswith(said)
    assert not resolve(request.replace(strategies=("ring_sequence",))).moved
    with pytest.raises(ValueError, match="Meshes of 16 that divide"):
        resolve(request.replace(strategies=("tensor_pipeline",), mesh="stage=2,tensor=8"))


@pytest.mark.parametrize("mesh", ["stage=2,tensor=8", "tensor=16"])
def test_compare_and_generate_name_meshes(mesh):
    said = "Meshes of 16 that divide: stage=8,tensor=2 or stage=16"
    with pytest.raises(ValueError, match=said):
        px.compare(
            model=CONFIG, strategies=["tensor_pipeline"], mesh=mesh, batch=16, lenses=["compile"]
        )
    with pytest.raises(ValueError, match=said):
        make_generator(CONFIG, None, resolve_strategy("tensor_pipeline", mesh, 16))
