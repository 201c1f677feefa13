"""Text in, text out: folders, names, streaming; the same text under every strategy."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax.sharding import PartitionSpec

import parallax as px
from parallax.engine import texts
from parallax.engine.latency import Latency
from parallax.engine.texts import _Stream, make_generator
from parallax.models.huggingface import ByteTokenizer
from parallax.requests.naming import is_published

LLAMA = Path(__file__).parents[1] / "models" / "huggingface" / "golden" / "llama"
PROMPTS = ["the quick", "pack my box with five"]


@pytest.mark.full
def test_a_folder_says_the_same_under_every_strategy():
    pieces = {}

    def on_text(prompt, text):
        pieces[prompt] = pieces.get(prompt, "") + text

    one = px.generate(LLAMA, PROMPTS, max_new_tokens=10, stop_tokens=(), on_text=on_text)
    assert [pieces[0], pieces[1]] == list(one.texts)
    assert all(len(c.tokens) == 10 for c in one.generation.continuations)
    for strategy, mesh in (("ring_sequence", "seq=4"), ("tensor_pipeline", "stage=2,tensor=4")):
        found = px.generate(
            LLAMA, PROMPTS, strategy=strategy, mesh=mesh, max_new_tokens=10, stop_tokens=()
        )
        assert found.texts == one.texts


@pytest.mark.slow
def test_a_tied_table_is_brought_to_the_unembedding_once():
    folder = LLAMA.with_name("llama_tied")
    config = px.huggingface.read_config(folder)
    one = make_generator(config, folder, px.strategies.data_parallel(1))
    many = make_generator(config, folder, px.strategies.tensor_pipeline(2, 2))
    assert not many.config.tie_embeddings
    params: Any = many.params
    unembed, tokens = params["unembed_DV"][...], params["tokens_VD"][...]
    np.testing.assert_array_equal(unembed, tokens.T)
    assert unembed.sharding.spec == PartitionSpec(None, ("stage", "tensor"))
    found = [g([[5, 6, 7]], max_new_tokens=4).continuations for g in (one, many)]
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_papers_small_model_has_random_weights_and_says_so():
    said = []
    found = px.generate("ring_sp", "def", small=True, max_new_tokens=3, on_progress=said.append)
    assert len(found.generation.continuations[0].tokens) == 3
    assert any("random weights" in line for line in said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "nope"}, "'nope' is neither a paper .*ring_sp.* nor an existing folder"),
        ({"model": "ring_sp"}, "no weights and no tokenizer"),
        ({"model": LLAMA, "small": True}, "a model's own weights"),
        (
            {"model": LLAMA, "strategy": "ring_sequence", "mesh": "seq=32"},
            r"px\.virtual_devices\(32\) before",
        ),
        ({"model": LLAMA, "strategy": "nope"}, "nope"),
        ({"model": "ring_sp", "small": True, "prompts": ""}, "prompt 0 is empty"),
        ({"model": LLAMA, "cache_len": 4}, "room for 4"),
        ({"model": "ring_sp", "small": True, "max_new_tokens": 10**9}, "1,000,000,.* GB are free"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message):
    arguments = {"prompts": "the quick", "max_new_tokens": 4} | arguments
    with pytest.raises(ValueError, match=message):
        px.generate(**arguments)


def test_text_beyond_the_models_positions_is_named(tmp_path):
    """By the published number; a model that was only ever trained here has none."""
    notes = px.generate(LLAMA, "the", max_new_tokens=256, stop_tokens=None).generation.notes
    assert any("up to 256 new ones are more than the 256 positions" in note for note in notes)
    (tmp_path / "run.json").write_text('{"weights": null}')
    assert not is_published(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"weights": str(LLAMA)}))
    assert is_published(tmp_path)


def test_a_character_comes_when_it_is_whole():
    stream = _Stream(ByteTokenizer())
    pieces = [stream.add(byte) for byte in "aé€".encode()]
    assert pieces == ["a", "", "é", "", "", "€"]
    assert stream.add(0xE2) == ""
    assert stream.rest() == "\ufffd"


@pytest.mark.parametrize(("seconds", "named"), [((1.0, 1.05, 0.5), ""), ((1.0, 1.2, 1.1), "1")])
def test_a_process_slower_than_process_0_is_named(monkeypatch, seconds, named):
    said = [
        json.dumps(asdict(Latency(10, 4, 0.1, (0.1, 0.2), total, compile_s=2.0)))
        for total in seconds
    ]
    monkeypatch.setattr(texts, "process_count", lambda: 3)
    monkeypatch.setattr(texts, "gather", lambda what, text: tuple(said))
    own = Latency(10, 4, 0.1, (0.1, 0.2), seconds[2], compile_s=3.0)
    latency, (note,) = texts._latency_of_first(own)
    assert latency == Latency(10, 4, 0.1, (0.1, 0.2), 1.0, compile_s=2.0)
    assert note.startswith("times are those of process 0")
    assert ("the slowest is" in note) == bool(named)
    assert not named or "process 1, with 1.2 s in all" in note
