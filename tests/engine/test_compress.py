"""A folder compressed: stored in fewer bytes, the same text under every strategy."""

from pathlib import Path

import pytest

import parallax as px

LLAMA = Path(__file__).parents[1] / "models" / "huggingface" / "golden" / "llama"
PROMPTS = ["the quick", "pack my box with five"]
FORMATS = "int8,int8+2:4"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return px.compress(LLAMA, FORMATS, tmp_path_factory.mktemp("compressed") / "weights")


def text(model, **options):
    return px.generate(model, PROMPTS, max_new_tokens=10, stop_tokens=(), **options).texts


def test_bytes_and_errors_are_what_they_are(done):
    by_name = {m.name: m for m in done.matrices}
    assert done.config.compression == ("int8", "int8+2:4")
    size = sum(f.stat().st_size for f in done.folder.glob("*.safetensors"))
    assert done.stored_bytes <= size < done.stored_bytes + 20_000
    assert done.stored_bytes < done.dense_bytes
    assert 1e-4 < by_name["attention/q_DHK"].error < 2e-2
    assert 0.1 < by_name["mlp/up_DF"].error < 0.5  # half of a normal matrix is gone
    assert by_name["mlp/up_DF"].stored_bytes < by_name["mlp/up_DF"].dense_bytes / 2


def test_stored_and_compressed_on_the_way_say_the_same_under_every_strategy(done):
    one = text(done.folder)
    assert text(LLAMA, compression=FORMATS) == one
    tensor = {"strategy": "tensor_pipeline", "mesh": "stage=2,tensor=2"}
    assert text(done.folder, **tensor) == one
    assert text(LLAMA, compression=FORMATS, **tensor) == one
    assert text(LLAMA) != one


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: px.compress("ring_sp", "int8", "new"), "no weights"),
        (lambda f: px.compress(LLAMA, None, "new"), "no format"),
        (lambda f: px.compress(LLAMA, "int3", "new"), "unknown format 'int3'"),
        (lambda f: px.compress(LLAMA, "int8,int8,int8", "new"), "expected one format"),
        (lambda f: px.compress(LLAMA, "int8", f), "exists"),
        (lambda f: text(f, dtype="float64"), "stored compressed for"),
        (lambda f: text(f, compression="int8"), "stored as int8,int8"),
    ],
)
def test_bad_input_is_one_clear_error(done, call, message):
    with pytest.raises(ValueError, match=message):
        call(done.folder)
