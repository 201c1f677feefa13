"""Folders of published families: transformers' logits under several strategies, and back."""

import functools
import json
from pathlib import Path

import jax
import ml_dtypes
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
from tests.models.huggingface.safetensors_files import write_tensors

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden"
ALONE = {"unsharded": data_parallel(1)}
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
FIRST = "llama", "gpt2", "qwen3", "mixtral"  # under every strategy; others under one


def cases_of(family):
    strategies = EXPERTS if huggingface.read_config(GOLDEN / family).num_experts else DENSE
    for number, (name, strategy) in enumerate((strategies | ALONE).items()):
        marks = [pytest.mark.exhaustive] if number and (family not in FIRST or number == 3) else []
        yield pytest.param(family, strategy, id=f"{family} {name}", marks=marks)


CASES = [case for family in FOLDERS for case in cases_of(family)]


def sharded(config, strategy, batch=2, length=16):
    return ShardedTransformer(config, strategy, Workload(batch, length))


def mesh_of(strategy):
    return strategy.mesh.build(jax.devices()[: strategy.mesh.size])


@pytest.mark.parametrize(("family", "strategy"), CASES)
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
    written = json.loads((GOLDEN / family / "config.json").read_text())["model_type"]
    save = functools.partial(huggingface.save, family=written)
    save(tmp_path / "one", program, params, tokenizer_from=GOLDEN / family)
    save(tmp_path / "many", program, params, max_file_bytes=40_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2

    before = (GOLDEN / family / "model.safetensors").read_bytes()
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == before
    assert huggingface.read_config(tmp_path / "one").replace(name=family) == config

    other = two_level(2, 2) if not config.num_experts else hybrid(layerwise(2), data_parallel(2))
    program, mesh = sharded(config, other), mesh_of(other)
    again = huggingface.load(tmp_path / "many", program, mesh)
    save(tmp_path / "again", program, again)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("qwen3", "bfloat16"), ("qwen3", "float16"), ("gpt_oss", "bfloat16"),
        ("gemma3_text", "bfloat16"), ("phi3", "bfloat16"),
    ],
)  # fmt: skip
def test_half_precision_there_and_back(family, dtype, tmp_path):
    """Weights in the dtype that published ones have; float32 files are rounded to the nearest."""
    config = huggingface.read_config(GOLDEN / family, dtype)
    strategy = hybrid(tensor_pipeline(2), ring_sequence(2))
    program, mesh = sharded(config, strategy), mesh_of(strategy)
    params = huggingface.load(GOLDEN / family, program, mesh)
    huggingface.save(tmp_path / "half", program, params)
    half = huggingface.read_config(tmp_path / "half")
    assert half.dtype == dtype
    huggingface.save(
        tmp_path / "again", program, huggingface.load(tmp_path / "half", program, mesh)
    )
    wide = load_file(GOLDEN / family / "model.safetensors")
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


def unsharded(folder):
    strategy = data_parallel(1)
    config = huggingface.read_config(folder)
    program, mesh = sharded(config, strategy), mesh_of(strategy)
    return program, huggingface.load(folder, program, mesh)


def test_a_family_of_other_tensors_for_the_same_model(tmp_path):
    """A Phi-4 is a Llama with fused matrices: it can be saved as either."""
    program, params = unsharded(GOLDEN / "llama_tied")
    plain = program.config.replace(rope_scaling=None)
    program = sharded(plain, data_parallel(1))
    huggingface.save(tmp_path / "llama", program, params)
    huggingface.save(tmp_path / "phi3", program, params, family="phi3")
    names = load_file(tmp_path / "phi3" / "model.safetensors")
    assert names["model.layers.1.self_attn.qkv_proj.weight"].shape == (128, 32)
    assert json.loads((tmp_path / "llama" / "config.json").read_text())["model_type"] == "llama"
    for name in ("llama", "phi3"):
        _, again = unsharded(tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_choice_bias_stays_wide(tmp_path):
    config = huggingface.read_config(GOLDEN / "deepseek_v3", "bfloat16")
    strategy = data_parallel(1)
    program, mesh = sharded(config, strategy), mesh_of(strategy)
    params = huggingface.load(GOLDEN / "deepseek_v3", program, mesh)
    huggingface.save(tmp_path / "half", program, params)
    wide = load_file(GOLDEN / "deepseek_v3" / "model.safetensors")
    for name, x in load_file(tmp_path / "half" / "model.safetensors").items():
        stays = name.endswith("e_score_correction_bias")
        assert x.dtype == (wide[name].dtype if stays else "bfloat16"), name
        np.testing.assert_array_equal(x, wide[name].astype(x.dtype), err_msg=name)


def quantized(family, folder, method, chosen, quantize):
    """A copy of a folder with some tensors quantized, and the numbers that they stand for."""
    tensors, plain = load_file(GOLDEN / family / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith(chosen)]:
        packed, plain[name] = quantize(name, tensors.pop(name))
        tensors |= packed
    assert plain
    folder.mkdir()
    write_tensors(folder / "model.safetensors", tensors)
    fields = json.loads((GOLDEN / family / "config.json").read_text())
    fields |= {"quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(fields))
    return plain


def to_mxfp4(name, x):
    """Random bits in place of experts' matrices [E, D, outputs]."""
    random = np.random.default_rng(0)
    shape = x.shape[0], x.shape[2], x.shape[1] // 32
    blocks, scales = random.integers(0, 256, (*shape, 16), np.uint8), np.full(shape, 126, np.uint8)
    sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], x.dtype)
    both = np.stack([sizes[blocks % 16], sizes[blocks // 16]], -1)
    plain = 0.5 * both.reshape(*shape[:2], -1).transpose(0, 2, 1)
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}, plain


def to_fp8(name, x):
    x = (4 * x).astype(ml_dtypes.float8_e4m3fn)
    factor = np.full((1, 1), 0.25, np.float32)
    return {name: x, f"{name}_scale_inv": factor}, 0.25 * x.astype(np.float32)


@pytest.mark.parametrize(
    ("family", "method", "chosen", "quantize"),
    [
        ("gpt_oss", "mxfp4", "gate_up_proj", to_mxfp4),
        ("deepseek_v3", "fp8", "down_proj.weight", to_fp8),
    ],
)
def test_quantized_weights_are_loaded_as_what_they_stand_for(
    family, method, chosen, quantize, tmp_path
):
    """Split over devices too; what is written back is not quantized."""
    plain = quantized(family, tmp_path / "packed", method, chosen, quantize)
    config = huggingface.read_config(tmp_path / "packed")
    strategy = tensor_pipeline(4, 2)
    program, mesh = sharded(config, strategy), mesh_of(strategy)
    params = huggingface.load(tmp_path / "packed", program, mesh)
    huggingface.save(tmp_path / "plain", program, params)
    fields = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "quantization_config" not in fields
    before = load_file(GOLDEN / family / "model.safetensors") | plain
    after = load_file(tmp_path / "plain" / "model.safetensors")
    assert sorted(before) == sorted(after)
    for name, x in after.items():
        np.testing.assert_array_equal(x, before[name], err_msg=name)
