"""Settings under which a family computes something else are refused by name, with a next step."""

import pytest

from tests.models.huggingface.golden_fields import GOLDEN, fields_of, fields_of_family, read

# Of each family: settings under which it computes something else.
REFUSED = [
    ("llama", "num_local_experts", 8),
    ("llama", "rope_interleaved", True),
    ("llama", "clip_qkv", 8.0),
    ("llama", "no_rope_layers", [1, 0]),
    ("llama", "compression_config", {"quant_method": "compressed-tensors"}),
    ("llama", "text_config", {"quantization_config": {"quant_method": "awq"}}),
    ("llama", "architectures", ["LlamaForSequenceClassification"]),
    ("llama", "architectures", ["LlamaForCausalLMEagle3"]),
    ("mistral", "architectures", ["MistralModel"]),
    ("mistral", "attention_bias", True),
    ("mistral", "layer_types", ["full_attention", "sliding_attention"]),
    ("mixtral", "hidden_act", "gelu"),
    ("mixtral", "num_experts_per_tok", 1),
    ("qwen2", "layer_types", ["full_attention", "linear_attention"]),
    ("qwen2", "num_experts", 8),
    ("qwen3", "attention_bias", True),
    ("qwen3", "final_logit_softcapping", 30.0),
    ("qwen3_moe", "mlp_only_layers", [0]),
    ("qwen3_moe", "decoder_sparse_step", 2),
    ("qwen3_moe", "quantization_config", {"quant_method": "fp8"}),
    ("phi3", "rope_scaling", {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}),
    ("phi3", "rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("phi3", "attention_bias", True),
    ("gemma2", "hidden_activation", "gelu"),
    ("gemma2", "use_bidirectional_attention", True),
    ("gemma3_text", "hidden_activation", "relu"),
    ("gemma3_text", "attn_logit_softcapping", 50.0),  # its class in transformers ignores it
    ("gemma3_text", "rope_parameters", {"rope_type": "linear", "factor": 8.0}),
    ("gpt_oss", "swiglu_alpha", 1.0),
    ("gpt_oss", "attention_bias", False),
    ("gpt_oss", "quantization_config", {"quant_method": "awq"}),
    ("olmo2", "clip_qkv", 8.0),
    ("olmo2", "rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
    ("deepseek_v2", "topk_method", "noaux_tc"),
    ("deepseek_v2", "norm_topk_prob", True),
    ("deepseek_v2", "scoring_func", "sigmoid"),
    ("deepseek_v3", "scoring_func", "softmax"),
    ("deepseek_v3", "rope_interleave", False),
    ("deepseek_v3", "moe_layer_freq", 2),
    ("deepseek_v3", "rms_norm_eps", 1e-5),
    ("deepseek_v3", "num_key_value_heads", 4),
    ("deepseek_v3", "quantization_config", {"quant_method": "fp8", "weight_block_size": [64, 64]}),
    ("deepseek_v3", "quantization_config", {"quant_method": "mxfp4"}),
    ("smollm3", "mlp_bias", True),
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt2", "activation_function", "relu"),
]


@pytest.mark.parametrize(("family", "name", "value"), REFUSED, ids=str)
def test_what_a_family_does_otherwise_is_refused_by_name(family, name, value, tmp_path):
    fields = fields_of_family(family)
    read(fields, tmp_path)
    if name == "rope_scaling":
        del fields["rope_parameters"]
    named = {"rope_scaling": "rope_type", "text_config": "quantization_config"}.get(name, name)
    with pytest.raises(
        ValueError, match=f"{named} is .* \\(Parallax: .*something else, so it is not"
    ):
        read(fields | {name: value}, tmp_path)


def test_logits_are_capped_where_the_class_of_transformers_does(tmp_path):
    text = fields_of(GOLDEN / "gemma3_text") | {"final_logit_softcapping": 30.0}
    assert read(text, tmp_path).logit_cap == 30.0
    with pytest.raises(ValueError, match=r"final_logit_softcapping is 30.0 \(Parallax: none"):
        read({"model_type": "gemma3", "text_config": text}, tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "mistral3", "text_config": {"model_type": "mistral"}}, "is a mistral, wh"),
        ({"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"]}, "are deepseek_v3'"),
        ({"model_type": "falcon", "architectures": 3, "text_config": [1]}, "or a module of your"),
    ],
    ids=["text_config", "architectures", "neither"],
)
def test_another_model_type_has_a_next_step(fields, said, tmp_path):
    with pytest.raises(ValueError, match=f"model_type is '{fields['model_type']}'.*{said}"):
        read(fields, tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "deepseek_v3"])
def test_a_scaling_in_both_spellings_is_one_scaling(family, tmp_path):
    """transformers 5 takes rope_scaling, others take rope_parameters."""
    fields = fields_of(GOLDEN / family)
    both = fields["rope_parameters"]
    same = dict(both.get("full_attention", both))
    same["type"] = same.pop("rope_type")
    assert read(fields | {"rope_scaling": same}, tmp_path) == read(fields, tmp_path)
    fewer = [{k: x for k, x in same.items() if k != name} for name in same]
    for other in ({"factor": 3.0}, {"type": "default"}, {"rope_theta": 5.0}, {"mscale": 0.5}):
        fewer.append(same | other)
    for scaling in fewer:
        with pytest.raises(ValueError, match=r"rope_scaling is .*what rope_parameters says"):
            read(fields | {"rope_scaling": scaling, "rope_theta": 77.0}, tmp_path)


def test_all_refusals_are_in_one_error(tmp_path):
    fields = fields_of(GOLDEN / "deepseek_v3") | {"scoring_func": "softmax", "moe_layer_freq": 2}
    fields["rope_parameters"] = {"rope_type": "ntk", "factor": 2.0}
    fields["quantization_config"] = {"quant_method": "awq"}
    with pytest.raises(ValueError, match="quantization_config is") as error:
        read(fields, tmp_path)
    for name in ("scoring_func", "moe_layer_freq", "rope_type"):
        assert f"{name} is" in str(error.value)
