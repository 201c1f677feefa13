"""A strategy is one entry of the registry: what lists, compares, searches and maps reads that."""

import pytest

import parallax as px
from parallax.commands.listing import listing
from parallax.meshes.cluster import cluster
from parallax.models.config import ModelConfig
from parallax.search.candidates import candidates
from parallax.search.ranking import rank
from parallax.search.regimes import regime_maps
from parallax.search.results import SearchRequest
from parallax.strategies import STRATEGIES, build, ring_sequence
from parallax.strategies.named import Named
from parallax.strategies.slots import SLOTS, Share, along

MODEL = ModelConfig(
    name="tiny", num_layers=2, d_model=64, num_heads=4, num_kv_heads=4, head_dim=16, d_ff=128,
    vocab_size=256, dtype="float16",
)  # fmt: skip
WHERE = cluster("h100_1x8")


@pytest.fixture
def made_up(monkeypatch):
    """A strategy that nobody has heard of: rings of an even number of devices, tokens in order."""

    def even(share: Share):
        return along("seq")(share) if share.devices % 2 == 0 else ()

    entry = Named(
        "a made-up ring", ("seq",),
        lambda n, where: ring_sequence(n["seq"], order="natural").replace(name="made_up"),
        lambda devices, node: {"seq": devices},
        {"sequence": even},
    )  # fmt: skip
    monkeypatch.setitem(STRATEGIES, "made_up", entry)


def test_a_new_entry_is_a_candidate_beside_all_others(request):
    before = [s.to_dict() for s in candidates(MODEL, WHERE, 8)]
    request.getfixturevalue("made_up")
    after = list(candidates(MODEL, WHERE, 8))
    new = [s for s in after if "made_up" in s.name]
    assert {str(s.mesh) for s in new} >= {"seq=8", "data=2,seq=4", "stage=2,seq=4"}
    assert [s.to_dict() for s in after if "made_up" not in s.name] == before


def test_a_new_entry_is_listed_built_and_ranked(made_up):
    assert "made_up" in listing("strategies")
    assert build("made_up", devices=8).mesh_axes == {"seq": 8}
    assert build("made_up+data_parallel", px.MeshSpec({"data": 2, "seq": 4})).mesh.size == 8
    found = rank(SearchRequest(MODEL, 8, 512, 1, WHERE.name), WHERE, compile_top=0)
    assert "made_up" in {c.strategy.name for c in found.ranked}


def test_a_new_entry_is_compared_by_name(made_up):
    report = px.compare(
        model=MODEL.replace(num_layers=1, dtype="float32"), strategies=["made_up"], mesh="seq=4",
        batch=2, seq_len=32, lenses=["verify"],
    )  # fmt: skip
    assert [r.strategy["name"] for r in report.results] == ["made_up"]
    verification = report.results[0].verification
    assert verification is not None
    assert verification.exact


def test_a_new_entry_is_on_the_maps(made_up, monkeypatch):
    monkeypatch.setattr("parallax.search.regimes._LENGTHS", (1024,))
    monkeypatch.setattr("parallax.search.regimes._BATCHES", (8,))
    monkeypatch.setattr("parallax.search.regimes._WIDTHS", (64,))
    monkeypatch.setattr("parallax.search.regimes._DEVICES", (8,))
    (lengths, *_) = regime_maps(MODEL, WHERE, 8, 1024)
    assert "made_up" in lengths.points[0].seconds
    assert "tensor_pipeline_colocated" not in lengths.points[0].seconds


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_an_entry_offers_a_slot_is_what_it_can_build(name):
    """All devices of a share, over axes that the entry has; readings are of other entries."""
    named = STRATEGIES[name]
    assert set(named.slots) <= set(SLOTS)
    assert named.variant_of in ("", *STRATEGIES)
    assert not (named.variant_of and named.slots)
    for ways in named.slots.values():
        for devices in (2, 6, 8, 16):
            for sizes in ways(Share(devices, 4, 16, 4, 64, all_ways=True)):
                assert set(sizes) <= set(named.axes)
                axes = {axis: sizes.get(axis, 1) for axis in named.axes}
                assert named.over(axes, WHERE.name).mesh.size == devices


def test_every_slot_has_an_entry():
    assert {slot for named in STRATEGIES.values() for slot in named.slots} == set(SLOTS)
