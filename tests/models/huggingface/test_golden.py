"""Folders of published families: transformers' logits under several strategies, and back."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from parallax.models import huggingface
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import (
    data_parallel,
    expert_parallel,
    hybrid,
    layerwise,
    ring_sequence,
    tensor_pipeline,
    two_level,
)
from parallax.workload import Workload

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"
DENSE = {
    "tensor_pipeline": tensor_pipeline(4, 2),
    "ring_sequence": ring_sequence(8),
    "two_level": two_level(4, 2),
}
EXPERTS = {
    "tensor_pipeline": tensor_pipeline(4, 2),
    "expert_parallel": expert_parallel(8, tile=8),
    "ring x expert weights": hybrid(
        ring_sequence(2), tensor_pipeline(4, 1, experts="colocated")
    ),
}  # fmt: skip
FOLDERS = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
CASES = [
    (family, name, strategy)
    for family in FOLDERS
    for name, strategy in (
        EXPERTS if huggingface.read_config(GOLDEN / family).num_experts else DENSE
    ).items()
]


def sharded(config, strategy, batch=2, length=16):
    return ShardedTransformer(config, strategy, Workload(batch, length))


def mesh_of(strategy):
    return strategy.mesh.build(jax.devices()[: strategy.mesh.size])


@pytest.mark.parametrize(
    ("family", "strategy"), [(f, s) for f, _, s in CASES], ids=[f"{f} {n}" for f, n, _ in CASES]
)
def test_logits_are_transformers(family, strategy):
    config = huggingface.read_config(GOLDEN / family)
    assert config.dtype == "float32"
    golden = load_file(GOLDEN / family / "logits.safetensors")
    rows = max(2, strategy.split().count("act_batch"))
    tokens = np.resize(golden["tokens"], (rows, 16))
    program, mesh = sharded(config, strategy, rows), mesh_of(strategy)
    params = huggingface.load(GOLDEN / family, program, mesh)
    logits = jax.jit(program.forward(mesh, "all"))(params, tokens)
    assert np.sqrt(np.mean(np.square(golden["logits"]))) > 0.5
    assert np.abs(np.asarray(logits)[:2] - golden["logits"]).max() <= 1e-4


@pytest.mark.parametrize("family", FOLDERS)
def test_there_and_back_is_bit_exact(family, tmp_path):
    config = huggingface.read_config(GOLDEN / family)
    strategy = tensor_pipeline(4, 2) if family != "gpt2" else tensor_pipeline(2, 2)
    program, mesh = sharded(config, strategy), mesh_of(strategy)
    params = huggingface.load(GOLDEN / family, program, mesh)
    huggingface.save(tmp_path / "one", program, params, tokenizer_from=GOLDEN / family)
    huggingface.save(tmp_path / "many", program, params, max_file_bytes=40_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2

    before = (GOLDEN / family / "model.safetensors").read_bytes()
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == before
    assert huggingface.read_config(tmp_path / "one").replace(name=family) == config

    other = two_level(2, 2) if not config.num_experts else hybrid(layerwise(2), data_parallel(2))
    program, mesh = sharded(config, other), mesh_of(other)
    again = huggingface.load(tmp_path / "many", program, mesh)
    huggingface.save(tmp_path / "again", program, again)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_there_and_back(dtype, tmp_path):
    """Weights in the dtype that published ones have; float32 files are rounded to the nearest."""
    config = huggingface.read_config(GOLDEN / "qwen3", dtype)
    strategy = hybrid(tensor_pipeline(2), ring_sequence(2))
    program, mesh = sharded(config, strategy), mesh_of(strategy)
    params = huggingface.load(GOLDEN / "qwen3", program, mesh)
    huggingface.save(tmp_path / "half", program, params)
    half = huggingface.read_config(tmp_path / "half")
    assert half.dtype == dtype
    huggingface.save(
        tmp_path / "again", program, huggingface.load(tmp_path / "half", program, mesh)
    )
    wide = load_file(GOLDEN / "qwen3" / "model.safetensors")
    once, twice = (load_file(tmp_path / n / "model.safetensors") for n in ("half", "again"))
    assert sorted(once) == sorted(twice) == sorted(wide)
    for name, x in once.items():
        np.testing.assert_array_equal(x, wide[name].astype(dtype), err_msg=name)
        assert x.tobytes() == twice[name].tobytes()
    wider = huggingface.read_config(tmp_path / "half", "float32")
    again = huggingface.load(tmp_path / "half", sharded(wider, strategy), mesh)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype("float32"), b), params, again)
    huggingface.save(tmp_path / "rounded", program, again)  # as from training
    for name, x in load_file(tmp_path / "rounded" / "model.safetensors").items():
        assert x.tobytes() == once[name].tobytes()


def test_names_of_a_model_without_its_head(tmp_path):
    """As the first GPT-2 folders have them, causal masks beside the weights."""
    tensors = load_file(GOLDEN / "gpt2" / "model.safetensors")
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    assert "wte.weight" in tensors
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.uint8))
    save_file(tensors, tmp_path / "model.safetensors")
    strategy = tensor_pipeline(2, 2)
    program = sharded(huggingface.read_config(GOLDEN / "gpt2"), strategy)
    mesh = mesh_of(strategy)
    found = huggingface.load(tmp_path, program, mesh)
    jax.tree.map(
        np.testing.assert_array_equal, found, huggingface.load(GOLDEN / "gpt2", program, mesh)
    )


def test_saved_files_carry_what_other_libraries_need(tmp_path):
    config = huggingface.read_config(GOLDEN / "llama")
    strategy = data_parallel(1)
    program, mesh = sharded(config, strategy), mesh_of(strategy)
    params = huggingface.load(GOLDEN / "llama", program, mesh)
    huggingface.save(tmp_path / "out", program, params, tokenizer_from=GOLDEN / "llama")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((GOLDEN / "llama" / "config.json").read_text())
    for name in set(written) & set(original):
        assert written[name] == original[name], name
    for name in ("bos_token_id", "eos_token_id"):
        assert written[name] == original[name]
    tokenizer = huggingface.read_tokenizer(tmp_path / "out", config.vocab_size)
    assert tokenizer.stop_tokens == (1,)
    with pytest.raises(ValueError, match="exists"):
        huggingface.save(tmp_path / "out", program, params)
