"""Published config.json files: their families, and as many parameters as their models have."""

import json
from pathlib import Path

import pytest

from parallax.models import huggingface
from parallax.models.huggingface.configs import FAMILIES, family_of, lost_by, to_fields
from parallax.requests.naming import resolve_model

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
# The first family that computes the same is the one that models are written as.
WRITTEN_AS = {"mistral": "llama", "phi3": "llama", "gemma3": "gemma3_text"}


def read(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name]["config"]))
    return huggingface.read_config(folder)


def siglip(width, layers, mlp, positions, patch, text_width):
    """Gemma 3's vision tower and projector, which its published count has too."""
    attention, norms = 4 * (width * width + width), 4 * width
    per_layer = attention + norms + 2 * width * mlp + mlp + width
    tower = layers * per_layer + positions * width + patch * patch * 3 * width + width + 2 * width
    return tower + width + width * text_width


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_published(name, tmp_path):
    config, expected = read(name, tmp_path), PUBLISHED[name]["parameters"]
    if name == "gemma-3-27b":
        expected -= siglip(1152, 27, 4304, 4096, 14, text_width=5376)
        assert expected == 27_009_346_304
    assert config.num_params == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_there_and_back(name, tmp_path):
    config = read(name, tmp_path)
    assert resolve_model(tmp_path / name / "config.json") == (config, tmp_path / name)
    family = PUBLISHED[name]["config"]["model_type"]
    assert family_of(config).model_type == WRITTEN_AS.get(family, family)
    if family != "gemma3":  # for text alone: it is written as its text model
        assert lost_by(FAMILIES[family], config) == []
    written = tmp_path / "written"
    written.mkdir()
    (written / "config.json").write_text(json.dumps(to_fields(config)))
    assert huggingface.read_config(written).replace(name=name) == config


def test_defaults_of_files_that_leave_settings_out(tmp_path):
    gemma = read("gemma-3-27b", tmp_path)
    assert gemma.vocab_size == 262_208
    assert [kind.window for kind in gemma.pattern] == [1024] * 5 + [None]
    assert (gemma.pattern[0].rope_theta, gemma.rope_theta) == (10_000.0, 1_000_000.0)
    assert (gemma.score_scale, gemma.embed_scale) == (256**-0.5, 5376**0.5)
    deepseek = read("deepseek-v3", tmp_path)
    assert (deepseek.head_dim, deepseek.dense_layers, deepseek.dense_d_ff) == (192, 3, 18_432)
    assert deepseek.router is not None
    assert (deepseek.router.groups, deepseek.router.groups_per_token) == (8, 4)
    assert deepseek.router.scale == 2.5
    gpt_oss = read("gpt-oss-20b", tmp_path)
    assert [kind.window for kind in gpt_oss.pattern] == [128, None]
    assert gpt_oss.rope_scaling is not None
    assert gpt_oss.rope_scaling.attention_factor == pytest.approx(1.3465735902799727, abs=1e-15)
