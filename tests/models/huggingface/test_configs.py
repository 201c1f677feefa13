"""config.json: settings that would change the result are refused by name, and no others."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from parallax.models import huggingface
from parallax.models.huggingface import configs
from parallax.models.huggingface.configs import FAMILIES, to_fields

GOLDEN = Path(__file__).parent / "golden"
ODD = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**30,
    float("inf"),
    float("nan"),
    "",
    "x",
    [],
    [{}],
    {},
    {"a": {}},
)


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny Llama."""
    return Path(shutil.copytree(GOLDEN / "llama", tmp_path / "llama"))


def fields_of(folder):
    return json.loads((folder / "config.json").read_text())


def change(folder, **fields):
    (folder / "config.json").write_text(json.dumps(fields_of(folder) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, f"model_type is 'bert'.*{', '.join(FAMILIES)}"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'.*silu"),
        ({"attention_bias": True}, "attention_bias is True.*no bias"),
        ({"sliding_window": 64}, "sliding_window is 64.*full attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 4.0}},
            "low_freq_factor must be a pos",
        ),
        ({"rope_parameters": {"factor": 4.0}}, "rope type None"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "differs between layers",
        ),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": [4.0]}, r"rope_scaling must be an object, got \[4.0\]"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a positive number, got None"),
        ({"hidden_act": "relu", "mlp_bias": True}, "hidden_act is 'relu'.*; mlp_bias is True"),
        ({"hidden_size": "wide"}, "hidden_size must be a positive integer, got 'wide'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3 does not divide"),
    ],
    ids=str,
)
def test_configs_we_would_compute_otherwise_are_refused(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(ValueError, match=message):
        huggingface.read_config(folder)


def test_a_sliding_window_as_long_as_the_context_is_full_attention(folder):
    change(folder, sliding_window=256)
    assert huggingface.read_config(folder).max_seq_len == 256


def test_older_files_keep_the_base_of_rope_apart(folder):
    change(
        folder, rope_parameters=None, rope_theta=1000.0, torch_dtype="bfloat16", dtype=None,
        rope_scaling={"type": "linear", "factor": 4.0},
    )  # fmt: skip
    config = huggingface.read_config(folder)
    assert config.rope_theta == 1000.0
    assert config.rope_scaling is not None
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 4.0)
    assert config.dtype == "bfloat16"
    assert huggingface.read_config(folder, "float32").dtype == "float32"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_field_of_any_type_ends_in_another_error(family, tmp_path):
    whole = fields_of(GOLDEN / family)
    for name in whole:
        for odd in ODD:
            (tmp_path / "config.json").write_text(json.dumps(whole | {name: odd}))
            with contextlib.suppress(ValueError):
                huggingface.read_config(tmp_path)


@pytest.mark.parametrize("family", [*FAMILIES, "llama_tied"])
def test_what_is_written_reads_the_same(family, tmp_path):
    config = huggingface.read_config(GOLDEN / family)
    (tmp_path / "config.json").write_text(json.dumps(to_fields(config)))
    assert huggingface.read_config(tmp_path).replace(name=family) == config


def test_what_a_folder_would_lose_is_not_written(monkeypatch):
    """Such as a new field of ModelConfig, which no family reads."""
    config, read = huggingface.read_config(GOLDEN / "llama"), configs._llama_like
    monkeypatch.setattr(configs, "_llama_like", lambda *args: read(*args).replace(causal=False))
    with pytest.raises(ValueError, match=r"causal is True \(there: False\)\. A folder of llama"):
        to_fields(config)


def test_one_expert_a_token_is_weighted_otherwise(tmp_path):
    """Mixtral divides gates by their sum, which makes one gate 1; here it stays a probability."""
    fields = fields_of(GOLDEN / "mixtral") | {"num_experts_per_tok": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"num_experts_per_tok is 1 \(Parallax: one choice is"):
        huggingface.read_config(tmp_path)
    one = huggingface.read_config(GOLDEN / "mixtral").replace(experts_per_token=1)
    with pytest.raises(ValueError, match=f"is none of {', '.join(FAMILIES)}"):
        to_fields(one)


@pytest.mark.parametrize(
    "name", ["rope_theta", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings"]
)
def test_what_families_default_differently_must_be_there(name, tmp_path):
    fields = fields_of(GOLDEN / "mixtral")
    fields |= {"rope_theta": 1e6} | {"rope_parameters": None}
    del fields[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=f"{name} must be a positive"):
        huggingface.read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x00", "\udcff"], ids=range(6))
def test_what_is_no_object(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="not JSON|must hold an object"):
        huggingface.read_config(path)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        huggingface.read_config(tmp_path / "nothing")
