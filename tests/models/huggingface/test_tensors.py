"""Tensors as pieces of parameters: every family's, whole, in slices and back; quantized ones."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from parallax.models import huggingface
from parallax.models.huggingface.configs import family_in
from parallax.models.huggingface.files import find_tensors
from parallax.models.huggingface.names import sizes_of
from parallax.models.huggingface.reading import checked_tensors
from parallax.models.huggingface.tensors import shapes_of
from parallax.models.huggingface.unpacking import unpacked
from tests.models.huggingface.safetensors_files import write_tensors

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())


def pieces_and_sizes(folder):
    config = huggingface.read_config(folder)
    return list(family_in(folder, config).tensors(config)), sizes_of(config)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_tensor_is_its_pieces_there_and_back(name):
    """Slices of the pieces too, as devices read them; every parameter is read once."""
    tensors = load_file(GOLDEN / name / "model.safetensors")
    pieces, sizes = pieces_and_sizes(GOLDEN / name)
    assert shapes_of(pieces, sizes) == {name: x.shape for name, x in tensors.items()}
    assert len({(piece.leaf, piece.at) for piece in pieces}) == len(pieces)
    random, parts = np.random.default_rng(0), {}
    for piece in sorted(pieces, key=lambda p: p.layout.part):
        layout, tensor = piece.layout, tensors[piece.name]

        def read(index, layout=layout, tensor=tensor):
            return layout.take(tensor[layout.cut(sizes, index)], sizes, index)

        whole = read(tuple(slice(0, sizes[d]) for d in layout.ours))
        assert whole.shape == tuple(sizes[d] for d in layout.ours)
        for _ in range(3):
            ends = [np.sort(random.integers(0, sizes[d] + 1, 2)) for d in layout.ours]
            index = tuple(slice(int(a), int(b)) for a, b in ends)
            np.testing.assert_array_equal(read(index), whole[index])
        parts.setdefault(piece.name, []).append((layout, layout.put(whole, sizes)))
    for name, found in parts.items():
        joined = found[0][0].join([x for _, x in found], sizes)
        np.testing.assert_array_equal(joined, tensors[name])


def test_a_rotated_part_of_a_head_becomes_pairs():
    """Phi-3 rotates 6 of 8 elements: halves 0..2 and 3..5 become neighbours, 6 and 7 stay."""
    pieces, sizes = pieces_and_sizes(GOLDEN / "phi3")
    fused = np.arange(128)[:, None] * np.ones((1, 64))  # the number of the row, q then k then v
    for leaf, first, columns in (
        ("q_DHK", 0, [0, 3, 1, 4, 2, 5, 6, 7]), ("k_DGK", 64, [0, 3, 1, 4, 2, 5, 6, 7]),
        ("v_DGK", 96, range(8)),
    ):  # fmt: skip
        (layout,) = (p.layout for p in pieces if p.leaf[-1] == leaf and p.at == (0,))
        whole = tuple(slice(0, sizes[d]) for d in layout.ours)
        x = layout.take(fused[layout.cut(sizes, whole)], sizes, whole)
        assert x[0, 1].tolist() == [first + 8 + column for column in columns]


def test_names_of_a_text_model_inside_a_larger_one(tmp_path):
    """As Gemma 3's folders have them, older and newer, beside what is for images."""
    text = load_file(GOLDEN / "gemma3_text" / "model.safetensors")
    config = json.loads((GOLDEN / "gemma3_text" / "config.json").read_text())
    for number, (prefix, beside) in enumerate(
        [
            ("language_model.model.", "vision_tower."),
            ("model.language_model.", "model.vision_tower."),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        whole = {"model_type": "gemma3", "text_config": config, "torch_dtype": "float32"}
        (folder / "config.json").write_text(json.dumps(whole))
        tensors = {prefix + name.removeprefix("model."): x for name, x in text.items()}
        tensors[f"{beside}vision_model.embeddings.weight"] = np.zeros((2, 2), np.float32)
        save_file(tensors, folder / "model.safetensors")
        files, _ = checked(folder)
        name = "model.layers.3.mlp.up_proj.weight"
        index = slice(3, 9), slice(0, 32)
        np.testing.assert_array_equal(files.read(name, index), text[name][index])
        tensors["model.other.weight"] = np.zeros((2, 2), np.float32)
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(ValueError, match="1 unexpected: model.other.weight"):
            checked(folder)


def checked(folder):
    return checked_tensors(folder, huggingface.read_config(folder))


FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_mxfp4_is_unpacked_number_by_number(tmp_path):
    """Against a loop over bits: a sign and one of eight sizes, the lower half first."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (2, 6, 3, 16), np.uint8)
    scales = random.integers(120, 134, (2, 6, 3), np.uint8)
    save_file({"x_blocks": blocks, "x_scales": scales, "y": np.zeros(3, np.float32)},
              tmp_path / "model.safetensors")  # fmt: skip
    files = unpacked(find_tensors(tmp_path))
    assert files.shapes == {"x": (2, 96, 6), "y": (3,)}
    expected = np.zeros((2, 96, 6))
    for expert, row, group, byte in np.ndindex(*blocks.shape):
        for half in range(2):
            bits = (int(blocks[expert, row, group, byte]) >> (4 * half)) & 15
            value = (-1.0 if bits & 8 else 1.0) * FP4[bits & 7]
            power = 2.0 ** (int(scales[expert, row, group]) - 127)
            expected[expert, 32 * group + 2 * byte + half, row] = value * power
    for index in (
        (slice(0, 2), slice(0, 96), slice(0, 6)), (slice(1, 2), slice(33, 71), slice(2, 5)),
    ):  # fmt: skip
        np.testing.assert_array_equal(files.read("x", index).astype(float), expected[index])


def test_fp8_has_a_factor_for_each_block(tmp_path):
    random = np.random.default_rng(0)
    x = random.standard_normal((150, 260), np.float32).astype(ml_dtypes.float8_e4m3fn)
    factors = random.standard_normal((2, 3), np.float32)
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"x": x, "x_scale_inv": factors})
    files = unpacked(find_tensors(tmp_path))
    assert files.shapes == {"x": (150, 260)}
    expected = np.array(
        [[float(x[i, j]) * factors[i // 128, j // 128] for j in range(260)] for i in range(150)],
        np.float32,
    )
    for index in ((slice(0, 150), slice(0, 260)), (slice(120, 140), slice(130, 259))):
        np.testing.assert_array_equal(files.read("x", index), expected[index])
    write_tensors(path, {"x": x, "x_scale_inv": factors[:, :2]})
    with pytest.raises(ValueError, match=r"x_scale_inv is \[2, 2\], expected \[2, 3\]"):
        unpacked(find_tensors(tmp_path))
