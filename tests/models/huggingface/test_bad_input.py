"""Folders that do not match are refused in one error that names everything; nothing is guessed."""

import json
import shutil
from pathlib import Path

import jax
import pytest
from safetensors.numpy import load_file, save_file

from parallax.models import huggingface
from parallax.models.config import ModelConfig
from parallax.models.huggingface.configs import FAMILIES
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import data_parallel
from parallax.workload import Workload

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny Llama."""
    return Path(shutil.copytree(GOLDEN / "llama", tmp_path / "llama"))


def load(folder):
    strategy = data_parallel(1)
    config = huggingface.read_config(folder)
    program = ShardedTransformer(config, strategy, Workload(1, 16))
    return huggingface.load(folder, program, strategy.mesh.build(jax.devices()[:1]))


def test_missing_unexpected_and_misshaped_tensors_are_all_named(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["extra.weight"] = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].copy()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="do not match") as error:
        load(folder)
    said = str(error.value)
    assert "1 missing: model.norm.weight" in said
    assert "1 unexpected: extra.weight" in said
    assert "1 of another shape: lm_head.weight [319, 32], expected [320, 32]" in said


def test_many_names_are_counted(folder):
    save_file({"x": load_file(folder / "model.safetensors")["lm_head.weight"]},
              folder / "model.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match=r"21 missing: .* and 1 more"):
        load(folder)


@pytest.mark.parametrize("size", [0, 4, 100, 20_000], ids="{} bytes".format)
def test_truncated_weights(folder, size):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file"):
        load(folder)


def test_a_header_that_lies(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not a whole safetensors file|do not match"):
        load(folder)


def test_numbers_of_a_quantised_model_are_not_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype("int8")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 not F64, F32, F16, BF16: model\.norm\.weight I8"):
        load(folder)


def test_a_table_that_is_there_twice_must_be_one(tmp_path):
    folder = Path(shutil.copytree(GOLDEN / "llama_tied", tmp_path / "tied"))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    assert load(folder)["tokens_VD"].shape == (320, 32)
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        load(folder)


def test_pickled_weights_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pytorch_model\.bin.*can run code"):
        load(folder)


def test_an_index_is_held_to_its_files(folder):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(ValueError, match=r"names model-1\.safetensors, which do not exist"):
        load(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="must hold names of files in this folder"):
        load(folder)
    for text in ("[]", '{"weight_map": []}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(ValueError, match="must hold an object|must be an object|not JSON"):
            load(folder)


def test_tokenizers(folder, tmp_path):
    tokenizer = huggingface.read_tokenizer(folder, 320)
    tokens = tokenizer.encode("the quick fox")
    assert tokens[0] == 0  # what the model expects before a text
    assert tokenizer.decode(tokens) == "the quick fox"
    assert tokenizer.stop_tokens == (1,)
    with pytest.raises(ValueError, match="tokens, the model has 100"):
        huggingface.read_tokenizer(folder, 100)
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["truncation"] = {
        "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    assert huggingface.read_tokenizer(folder, 320).encode("the quick fox") == tokens
    (folder / "generation_config.json").write_text('{"eos_token_id": 400}')
    with pytest.raises(ValueError, match="eos_token_id 400"):
        huggingface.read_tokenizer(folder, 320)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="not a tokenizer"):
        huggingface.read_tokenizer(folder, 320)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(ValueError, match=r"tokenizer\.model is a tokenizer of an unsupported kind"):
        huggingface.read_tokenizer(folder, 320)
    with pytest.raises(ValueError, match=r"no tokenizer\.json, and the model's 320 tokens"):
        huggingface.read_tokenizer(tmp_path, 320)
    assert huggingface.read_tokenizer(tmp_path, 256).encode("é") == [0xC3, 0xA9]


def test_a_model_of_no_family_cannot_be_saved(tmp_path):
    config = ModelConfig("own", 2, 32, 4, 4, 8, 64, 256)
    strategy = data_parallel(1)
    program = ShardedTransformer(config, strategy, Workload(1, 16))
    mesh = strategy.mesh.build(jax.devices()[:1])
    params = program.init(jax.random.key(0), mesh)
    with pytest.raises(ValueError, match=f"is none of {', '.join(FAMILIES)}"):
        huggingface.save(tmp_path / "out", program, params)
    assert not list(tmp_path.iterdir())
