"""A folder compressed: stored in fewer bytes, the same text under every strategy."""

import dataclasses
import importlib
from pathlib import Path

import pytest
from safetensors import SafetensorError

import parallax as px

compressing = importlib.import_module("parallax.engine.compress")

pytestmark = pytest.mark.slow

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


@pytest.mark.full
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


def test_a_folder_that_cannot_be_made_is_refused_before_any_weight_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(compressing, "load_params", lambda *_: pytest.fail("weights were read"))
    (tmp_path / "file").write_text("")
    for out, message in (
        (tmp_path / "file" / "new", "Not a directory"),
        ("/proc/a/b", r"\(/proc\)"),
    ):
        with pytest.raises(ValueError, match=f"the folder .*{message}.* that can be written"):
            px.compress(LLAMA, "int8", out)


def test_a_full_disk_leaves_nothing_and_is_one_line(tmp_path, monkeypatch):
    def full_disk(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full_disk)
    with pytest.raises(ValueError, match=r"small: .*No space left.* Nothing was made there"):
        px.compress(LLAMA, "int8", tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    out = tmp_path_factory.mktemp("mixed") / "weights"
    return px.compress(LLAMA, "int8", out, layer_formats=["1=float32,int8+2:4"])


def test_weights_that_are_far_off_are_a_warning(done, mixed):
    (said,) = done.warnings
    assert "stored as int8+2:4, the weights of mlp/" in said
    assert "text is likely to be much worse" in said
    assert mixed.warnings
    int8 = [m for m in mixed.matrices if m.form == "int8"]
    assert dataclasses.replace(mixed, matrices=tuple(int8)).warnings == ()


def test_every_layer_has_its_formats_and_errors(mixed, done):
    assert mixed.config.compression is None
    assert [one.formats for one in mixed.layers] == [("int8", "int8"), ("float32", "int8+2:4")]
    size = sum(f.stat().st_size for f in mixed.folder.glob("*.safetensors"))
    assert mixed.stored_bytes <= size < mixed.stored_bytes + 20_000
    rows = {(m.name, m.form): m for m in mixed.matrices}
    assert rows["attention/q_DHK", "float32"].error == 0.0
    assert rows["attention/q_DHK", "float32"].layers == (1,)
    assert rows["mlp/up_DF", "int8"].layers == (0,)
    first, second = (one.block_error for one in mixed.layers)
    assert 1e-4 < first < 3e-2 < second < 1
    assert sum(one.stored_bytes for one in mixed.layers) == sum(
        m.stored_bytes for m in mixed.matrices
    )
    assert all(one.damage is None for one in mixed.layers)


def test_one_program_refuses_a_mix(mixed):
    with pytest.raises(ValueError, match=r"2 different formats, .* Use parallax deploy"):
        text(mixed.folder)


@pytest.mark.full
def test_a_chain_says_what_one_program_says(done, mixed):
    """Uniform and mixed folders as they are stored; prompts are padded alike."""
    import jax

    from parallax.engine.deployment.reference import unsharded_params, unsharded_tokens
    from parallax.engine.weights import find_tokenizer

    for folder in (done.folder, mixed.folder):
        chain = px.Deployment.load(folder, jax.devices()[:2], batch=2, max_len=40)
        config, host = chain.chain.config, chain.chain.host
        tokenizer = find_tokenizer(config, folder)
        assert tokenizer is not None
        assert host.stored is not None
        encoded = [tokenizer.encode(prompt) for prompt in PROMPTS]
        dense = unsharded_params(host, host.stored)
        found = chain.generate(encoded, max_new_tokens=5, stop_tokens=()).continuations
        assert found == unsharded_tokens(config, dense, encoded, 5)
        held = sum(x.nbytes for x in jax.tree.leaves(host.layers))
        assert sum(chain.device_bytes("weights")) == held
        with pytest.raises(ValueError, match="its dense weights are not at hand"):
            chain.prepare_switch([0], ("int8", "int8+1:4"))


def damage(found):
    return sum(one.damage or 0.0 for one in found.layers)


def test_a_budget_chooses_the_mildest(tmp_path):
    found = px.compress(LLAMA, budget="0.3x", out=tmp_path / "mild")
    dense = sum(m.dense_bytes for m in found.matrices)
    taken = sum(one.stored_bytes for one in found.layers)
    assert taken <= 0.3 * dense
    assert sum(m.stored_bytes for m in found.matrices) == taken
    # The proxy is what it says: squared errors of weights; the table has the worst layer's.
    total, worst = damage(found), sum(len(m.layers) * m.error**2 for m in found.matrices)
    assert 0.8 * worst < total <= worst * (1 + 1e-6)
    wide = px.compress(LLAMA, budget=int(0.6 * dense), out=tmp_path / "wide")
    assert damage(wide) < total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "0.01x"}, "the smallest formats take"),
        ({"budget": "much"}, "expected a share"),
        ({"budget": "0.3x", "compression": "int8"}, "formats and a budget"),
        ({"compression": "float32"}, "nothing is compressed"),
        ({"layer_formats": ["7=int8"]}, "layer formats '7=int8'"),
        ({"compression": [("int8", "int8")]}, "a pair .* for each of 2 layers"),
    ],
)
def test_bad_mixes_are_one_clear_error(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        px.compress(LLAMA, out=tmp_path / "new", **options)


def test_a_damaged_list_of_layers_is_refused(mixed, tmp_path):
    import json

    said = json.loads((mixed.folder / "compressed.json").read_text())
    assert said["layers"] == [["int8", "int8"], ["float32", "int8+2:4"]]
    for layers in ([["int8", "int8"]], [["int8"], ["int8"]], "int8", [["int3", "int8"]] * 2):
        (tmp_path / "compressed.json").write_text(json.dumps({**said, "layers": layers}))
        with pytest.raises(ValueError, match=r"compressed\.json"):
            px.Deployment.load(tmp_path, batch=1, max_len=8)
