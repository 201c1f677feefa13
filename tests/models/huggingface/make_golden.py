"""Makes the golden folders: tiny random models of each family and the logits transformers computes.

  pip install torch transformers        (in an environment of its own)
  python tests/models/huggingface/make_golden.py

Result: tests/models/huggingface/golden/<name>/ with config.json, model.safetensors, and
logits.safetensors (tokens [2, 16], logits [2, 16, V] in float32); for `llama` a tokenizer too.
Folders that exist stay as they are; golden/versions.json has the versions that made each.
"""
# torch and transformers are not among our dependencies.
# pyright: reportMissingImports=false

import json
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file

GOLDEN = Path(__file__).parent / "golden"
COMMON = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, head_dim=8, vocab_size=320, max_position_embeddings=256,
    initializer_range=0.2,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500_000.0, factor=8.0, low_freq_factor=1.0,
    high_freq_factor=4.0, original_max_position_embeddings=32,
)  # fmt: skip
# Smaller, for the families after the first four.
SMALL = COMMON | dict(vocab_size=96, intermediate_size=40, max_position_embeddings=64)
WINDOWS = SMALL | dict(num_hidden_layers=4, sliding_window=5)
YARN = dict(
    rope_type="yarn", rope_theta=10_000.0, factor=4.0, original_max_position_embeddings=16,
    beta_fast=4.0, beta_slow=1.0,
)  # fmt: skip
DEEPSEEK = {k: v for k, v in SMALL.items() if k not in ("head_dim", "num_key_value_heads")} | dict(
    num_hidden_layers=3, num_key_value_heads=8, first_k_dense_replace=1, n_routed_experts=8,
    num_experts_per_tok=3, moe_intermediate_size=16, kv_lora_rank=16, qk_nope_head_dim=8,
    qk_rope_head_dim=4, v_head_dim=6, n_group=4, topk_group=2,
)  # fmt: skip
CONFIGS = {
    "llama": transformers.LlamaConfig(**COMMON, rope_parameters=LLAMA3),
    "llama_tied": transformers.LlamaConfig(
        **COMMON, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="linear", rope_theta=10_000.0, factor=2.0),
    ),
    "gpt2": transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=257, initializer_range=0.2
    ),
    "qwen3": transformers.Qwen3Config(**COMMON | {"head_dim": 16}),
    "mixtral": transformers.MixtralConfig(**COMMON, num_local_experts=8, num_experts_per_tok=2),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=5),
    "qwen2": transformers.Qwen2Config(
        **{k: v for k, v in SMALL.items() if k != "head_dim"}, rope_parameters=YARN
    ),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **SMALL, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=16,
        norm_topk_prob=True,
    ),
    "phi3": transformers.Phi3Config(
        **SMALL | {"hidden_size": 64},
        pad_token_id=0,
        rope_parameters=dict(
            rope_type="default", rope_theta=10_000.0, partial_rotary_factor=0.75
        ),
    ),
    "gemma3_text": transformers.Gemma3TextConfig(
        **WINDOWS, query_pre_attn_scalar=12, sliding_window_pattern=2,
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0),
            sliding_attention=dict(rope_type="default", rope_theta=10_000.0),
        ),
    ),
    "gemma2": transformers.Gemma2Config(
        **WINDOWS, query_pre_attn_scalar=8, attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gpt_oss": transformers.GptOssConfig(
        **WINDOWS | {"intermediate_size": 16}, num_local_experts=8, num_experts_per_tok=2,
        rope_parameters=YARN | {"truncate": False},
    ),
    "olmo2": transformers.Olmo2Config(
        **{k: v for k, v in SMALL.items() if k != "head_dim"},
        rope_parameters=dict(rope_type="default", rope_theta=500_000.0),
    ),
    "deepseek_v2": transformers.DeepseekV2Config(
        **DEEPSEEK, q_lora_rank=None, n_shared_experts=2, topk_method="group_limited_greedy",
        routed_scaling_factor=2.0,
        rope_parameters=YARN | dict(mscale=0.707, mscale_all_dim=0.707),
    ),
    "deepseek_v3": transformers.DeepseekV3Config(
        **DEEPSEEK, q_lora_rank=12, n_shared_experts=1,
        rope_parameters=YARN | dict(mscale=1.0, mscale_all_dim=1.0),
    ),
    "smollm3": transformers.SmolLM3Config(
        **{k: v for k, v in SMALL.items() if k != "head_dim"} | {"num_hidden_layers": 4},
        pad_token_id=0,
        no_rope_layer_interval=2,
    ),
}  # fmt: skip
TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs. " * 20


def make(name: str, config) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.float().eval()
    with torch.no_grad():  # norms and biases start as ones and zeros, which would hide mistakes
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for buffer_name, buffer in model.named_buffers():
            if "correction_bias" in buffer_name:
                buffer.add_(0.1 * torch.randn_like(buffer))
    folder = GOLDEN / name
    model.save_pretrained(folder)
    tokens = torch.randint(0, config.vocab_size, (2, 16))
    with torch.no_grad():
        logits = model(tokens).logits
    save_file({"tokens": tokens.int(), "logits": logits}, folder / "logits.safetensors")
    (folder / "generation_config.json").unlink(missing_ok=True)


def make_tokenizer(folder: Path, vocab_size: int) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1]}\n', encoding="utf-8")


if __name__ == "__main__":
    path = GOLDEN / "versions.json"
    versions = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, config in CONFIGS.items():
        if (GOLDEN / name).is_dir():
            continue
        make(name, config)
        if name == "llama":
            make_tokenizer(GOLDEN / name, 300)
        versions[name] = {x.__name__: x.__version__ for x in (torch, transformers, tokenizers)}
    path.write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
