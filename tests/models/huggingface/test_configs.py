"""config.json: settings that would change the result are refused by name, and no others."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from parallax.models import huggingface
from parallax.models.huggingface.configs import (
    FAMILIES,
    family_in,
    family_of,
    lost_by,
    to_fields,
)
from parallax.models.layer_kinds import LayerKind
from tests.models.huggingface.golden_fields import GOLDEN, fields_of, fields_of_family, read

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
        ({"rope_parameters": {"rope_type": "ntk", "factor": 4.0}}, "rope_type is 'ntk'.*yarn"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 4.0}},
            "low_freq_factor must be a pos",
        ),
        ({"rope_parameters": {"factor": 4.0}}, "rope_type is None"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters is .*differs between layers",
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


def test_without_a_dtype_quantized_weights_are_what_they_unpack_to(tmp_path):
    shutil.copy(GOLDEN / "gpt_oss" / "config.json", tmp_path)
    change(tmp_path, dtype=None, torch_dtype=None)
    assert huggingface.read_config(tmp_path).dtype == "float32"
    change(tmp_path, quantization_config={"quant_method": "mxfp4"})
    assert huggingface.read_config(tmp_path).dtype == "bfloat16"
    change(tmp_path, dtype="float16")
    assert huggingface.read_config(tmp_path).dtype == "float16"


@pytest.mark.parametrize("family", FAMILIES)
def test_no_field_of_any_type_ends_in_another_error(family, tmp_path):
    whole = fields_of_family(family)
    for name in whole:
        for odd in ODD:
            with contextlib.suppress(ValueError):
                read(whole | {name: odd}, tmp_path)
    for name in whole.get("text_config", ()):
        with contextlib.suppress(ValueError):
            read(whole | {"text_config": whole["text_config"] | {name: [{}]}}, tmp_path)


FOLDERS = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())


@pytest.mark.parametrize("family", FOLDERS)
def test_what_is_written_reads_the_same(family, tmp_path):
    config = huggingface.read_config(GOLDEN / family)
    model_type = fields_of(GOLDEN / family)["model_type"]
    for name in {model_type, family_of(config).model_type}:
        written = to_fields(config, name)
        assert written["model_type"] == name
        assert read(written, tmp_path).replace(name=family) == config


def test_a_flag_of_windows_counts_where_the_family_has_it(tmp_path):
    def window(family, **settings):
        config = read(fields_of(GOLDEN / family) | settings, tmp_path)
        return [kind.window for kind in config.pattern]

    off = {"sliding_window": 5, "use_sliding_window": False}
    assert window("mistral", **off) == window("phi3", **off) == [5]
    assert window("qwen3_moe", **off) == []
    fields = fields_of(GOLDEN / "qwen2") | {"use_sliding_window": True, "max_window_layers": 0}
    fields = {n: x for n, x in fields.items() if n not in ("sliding_window", "layer_types")}
    config = read(fields | {"max_position_embeddings": 8192}, tmp_path)
    assert config.pattern == (LayerKind(window=4096),)


def test_windows_by_layer_repeat_soon_or_are_refused(tmp_path):
    fields = fields_of(GOLDEN / "qwen2") | {"use_sliding_window": True, "sliding_window": 5}
    del fields["layer_types"]
    fields |= {"num_hidden_layers": 4, "max_window_layers": 2}
    config = read(fields, tmp_path)
    assert [kind.window for kind in config.pattern] == [None, None, 5, 5]
    assert read(fields | {"max_window_layers": 4}, tmp_path).pattern == ()
    with pytest.raises(
        ValueError, match=r"max_window_layers is 20 \(Parallax: kinds of layers that"
    ):
        read(fields | {"num_hidden_layers": 40, "max_window_layers": 20}, tmp_path)
    types = ["full_attention", "sliding_attention"]
    fields |= {"num_hidden_layers": 40, "layer_types": types * 20}
    assert [kind.window for kind in read(fields, tmp_path).pattern] == [None, 5]
    with pytest.raises(ValueError, match="layer_types names 38 layers, num_hidden_layers is 40"):
        read(fields | {"layer_types": types * 19}, tmp_path)


def test_a_window_is_a_pattern_of_one_kind(tmp_path):
    config = huggingface.read_config(GOLDEN / "mistral")
    assert [kind.window for kind in config.pattern] == [5]
    fields = fields_of(GOLDEN / "mistral")
    assert read(fields | {"sliding_window": None}, tmp_path).pattern == ()
    assert read(fields | {"sliding_window": 64}, tmp_path).pattern == ()
    del fields["sliding_window"]
    long = read(fields | {"max_position_embeddings": 8192}, tmp_path)
    assert [kind.window for kind in long.pattern] == [4096]  # the family's default


def test_yarn_and_its_factors(tmp_path):
    """m = 0.1 ln(factor) + 1 scales angles; DeepSeek's has m of both, and m^2 scales scores."""
    scaling = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    fields = fields_of(GOLDEN / "llama") | {"rope_scaling": scaling, "rope_parameters": None}
    found = read(fields, tmp_path).rope_scaling
    assert found is not None
    assert found.attention_factor == 1.3688879454113936
    assert (found.beta_fast, found.beta_slow, found.truncate) == (32.0, 1.0, True)
    fields = fields_of(GOLDEN / "deepseek_v3") | {"rope_parameters": None}
    fields["rope_scaling"] = scaling | {"mscale": 1.0, "mscale_all_dim": 1.0}
    config = read(fields, tmp_path)
    assert config.rope_scaling is not None
    assert config.rope_scaling.attention_factor == 1.0
    assert config.score_scale == pytest.approx(12**-0.5 * 1.3688879454113936**2, rel=1e-14)
    fields["rope_scaling"] = scaling | {"mscale": 1.0, "mscale_all_dim": 0.5}
    config = read(fields, tmp_path)
    assert config.rope_scaling is not None
    assert config.rope_scaling.attention_factor == pytest.approx(1.3688879454 / 1.1844439727)
    assert read(to_fields(config), tmp_path) == config


def test_yarn_without_pairs_in_between(tmp_path):
    """Kimi-K2 has both betas 1; a setting that contradicts another is named with its file."""
    fields = fields_of(GOLDEN / "qwen2")
    rope = fields["rope_parameters"]
    found = read(fields | {"rope_parameters": rope | {"beta_fast": 1.0}}, tmp_path).rope_scaling
    assert found is not None
    assert (found.beta_fast, found.beta_slow) == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"config\.json: RopeScaling: beta_slow must be above"):
        read(fields | {"rope_parameters": rope | {"beta_fast": 0.5}}, tmp_path)


@pytest.mark.parametrize("digits", [0.5, 0.5**0.5], ids=["short", "long"])
def test_a_factor_of_scores_alone_leaves_the_family(digits, tmp_path):
    """A folder is of the family that reads it, also where rounding would lose digits of it."""
    fields = fields_of(GOLDEN / "deepseek_v3")
    rope = {k: v for k, v in fields["rope_parameters"].items() if k != "mscale"}
    config = read(fields | {"rope_parameters": rope | {"mscale_all_dim": digits}}, tmp_path)
    assert family_in(tmp_path, config).model_type == "deepseek_v3"
    if digits == 0.5:
        assert read(to_fields(config), tmp_path) == config


def test_an_absent_setting_differs_from_none(tmp_path):
    """gpt-oss without a scaling has its family's, DeepSeek may have no shared experts."""
    config = huggingface.read_config(GOLDEN / "gpt_oss").replace(rope_scaling=None)
    written = to_fields(config)
    assert read(written, tmp_path).replace(name=config.name) == config
    del written["rope_parameters"]
    found = read(written, tmp_path).rope_scaling
    assert found is not None
    assert (found.kind, found.factor, found.truncate) == ("yarn", 32.0, False)
    config = huggingface.read_config(GOLDEN / "deepseek_v3").replace(shared_experts=0)
    assert read(to_fields(config), tmp_path).replace(name=config.name) == config
    fields = fields_of(GOLDEN / "deepseek_v3") | {"first_k_dense_replace": 0, "q_lora_rank": None}
    config = read(fields, tmp_path)
    assert (config.dense_layers, config.dense_d_ff) == (0, 0)
    assert config.latent is not None
    assert config.latent.q_rank is None


def test_older_and_newer_spellings_of_gemma3s_rotations(tmp_path):
    newer = fields_of(GOLDEN / "gemma3_text")
    older = {k: v for k, v in newer.items() if k not in ("rope_parameters", "layer_types")}
    older |= {
        "rope_theta": 1e6, "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }  # fmt: skip
    assert read(older, tmp_path) == read(newer, tmp_path)
    scaled = newer["rope_parameters"] | {
        "sliding_attention": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
    }
    config = read(newer | {"rope_parameters": scaled}, tmp_path)
    assert config.pattern[0].rope_scaling is not None
    assert read(to_fields(config), tmp_path) == config


def test_what_a_folder_would_lose_is_not_written(tmp_path):
    config = huggingface.read_config(GOLDEN / "llama")
    with pytest.raises(ValueError, match=r"folder of llama would.*causal is False \(there: True\)"):
        to_fields(config.replace(causal=False))
    with pytest.raises(ValueError, match=r"'qwen2' would compute.*qkv_bias is False"):
        to_fields(config, "qwen2")
    for family in ("mixtral", "bert"):
        with pytest.raises(ValueError, match=f"family '{family}' cannot hold it"):
            to_fields(config, family)


def test_a_family_notices_what_it_does_not_hold():
    config = huggingface.read_config(GOLDEN / "gpt_oss")
    changes = {"sinks": False, "norms": "both", "gate_limit": 3.0, "embed_scale": 2.0}
    for name, value in changes.items():
        lost = lost_by(FAMILIES["gpt_oss"], config.replace(**{name: value}))
        assert (lost == []) == (name == "gate_limit"), lost


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
    ("name", "field", "value"),
    [
        ("rope_theta", "rope_theta", 1e6), ("num_key_value_heads", "num_kv_heads", 8),
        ("rms_norm_eps", "norm_epsilon", 1e-5), ("max_position_embeddings", "max_seq_len", 131_072),
    ],
)  # fmt: skip
def test_a_missing_setting_is_the_familys_default(name, field, value, tmp_path):
    fields = fields_of(GOLDEN / "mixtral") | {"rope_theta": 1.0, "rms_norm_eps": 1.0}
    del fields["rope_parameters"]
    assert getattr(read(fields, tmp_path), field) != value
    del fields[name]
    assert getattr(read(fields, tmp_path), field) == value


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_a_models_sizes_must_be_there(name, tmp_path):
    fields = fields_of(GOLDEN / "llama")
    del fields[name]
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got None"):
        read(fields, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x00", "\udcff"], ids=range(6))
def test_what_is_no_object(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="not JSON|must hold an object"):
        huggingface.read_config(path)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        huggingface.read_config(tmp_path / "nothing")
