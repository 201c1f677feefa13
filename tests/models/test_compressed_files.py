"""Compressed weights in a folder: the same bits under another strategy; damage is refused."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from parallax.models.compressed_files import (
    load_compressed,
    read_compressed_config,
    save_compressed,
)
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import data_parallel, layerwise, tensor_pipeline
from tests.strategies.cases import UNEQUAL, workload

CONFIG = UNEQUAL.replace(
    name="stored", dtype="bfloat16", vocab_size=250, compression=("int8/4", "int4/16+2:4")
)


def sharded(strategy, config=CONFIG):
    found = ShardedTransformer(config, strategy, workload(strategy))
    return found, strategy.mesh.build(jax.devices()[: strategy.mesh.size])


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Drawn and saved under unequal stages."""
    model, mesh = sharded(layerwise(4))
    params = model.init(jax.random.key(0), mesh)
    folder = tmp_path_factory.mktemp("stored") / "weights"
    save_compressed(folder, model, params)
    return folder, jax.device_get(model.unshard(params))


def copy(folder, tmp_path):
    target = tmp_path / "damaged"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [tensor_pipeline(8, 1), data_parallel(1), layerwise(5)])
def test_the_same_bits_under_another_strategy(stored, strategy):
    folder, params = stored
    assert read_compressed_config(folder) == CONFIG
    model, mesh = sharded(strategy)
    found = model.unshard(load_compressed(folder, model, mesh))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_files_are_as_large_as_what_devices_hold(stored):
    folder, params = stored
    held = sum(x.nbytes for x in jax.tree.leaves(params))
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert held <= size < held + 4000 * 6  # a header a file


@pytest.mark.parametrize(
    ("name", "why"), [("positions", "must ascend"), ("scales", "finite and not negative")]
)
def test_damaged_numbers_are_refused(stored, tmp_path, name, why):
    folder = copy(stored[0], tmp_path)
    file = folder / "layer-00003.safetensors"
    tensors = load_file(file)
    key = f"layers/3/mlp/up_DF/{name}"
    tensors[key] = np.full_like(tensors[key], 0 if name == "positions" else -1)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"{key}: .*{why}"):
        load_compressed(folder, *sharded(data_parallel(1)))


def test_what_does_not_belong_together_is_refused(stored, tmp_path):
    folder = copy(stored[0], tmp_path)
    other = CONFIG.replace(compression=("int8", "int8"))
    with pytest.raises(ValueError, match="compression differ"):
        load_compressed(folder, *sharded(data_parallel(1), other))
    file = folder / "layer-00000.safetensors"
    tensors = load_file(file)
    whole = dict(tensors)
    tensors["layers/0/mlp/up_DF/values"] = tensors["layers/0/mlp/up_DF/values"].astype(np.int8)
    save_file(tensors, file)
    with pytest.raises(ValueError, match="is I8, its format stores uint8"):
        load_compressed(folder, *sharded(data_parallel(1)))
    del whole["layers/0/mlp/up_DF/values"]
    save_file(whole, file)
    with pytest.raises(ValueError, match="1 missing: layers/0/mlp/up_DF/values"):
        load_compressed(folder, *sharded(data_parallel(1)))
    file.unlink()
    with pytest.raises(ValueError, match="layer-00000.safetensors is missing"):
        load_compressed(folder, *sharded(data_parallel(1)))
    said = json.loads((folder / "compressed.json").read_text())
    (folder / "compressed.json").write_text(json.dumps(said | {"version": 2}))
    with pytest.raises(ValueError, match="version is 2, this Parallax reads 1"):
        read_compressed_config(folder)


def test_nothing_is_overwritten_and_dense_weights_have_another_place(stored, tmp_path):
    model, mesh = sharded(data_parallel(1), CONFIG.replace(compression=None))
    params = model.init(jax.random.key(0), mesh)
    with pytest.raises(ValueError, match=r"huggingface\.save"):
        save_compressed(tmp_path / "new", model, params)
    model, mesh = sharded(data_parallel(1))
    with pytest.raises(ValueError, match="exists"):
        save_compressed(stored[0], model, model.init(jax.random.key(0), mesh))
