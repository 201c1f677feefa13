"""Makes the golden folders: tiny random models of each family and the logits transformers computes.

  pip install torch transformers        (in an environment of its own)
  python tests/models/huggingface/make_golden.py

Result: tests/models/huggingface/golden/<name>/ with config.json, model.safetensors, and
logits.safetensors (tokens [2, 16], logits [2, 16, V] in float32); for `llama` a tokenizer too.
Made once, with the versions in golden/versions.json; run it again only to add a family.
"""
# torch and transformers are not among our dependencies.
# pyright: reportMissingImports=false

import json
import shutil
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
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for name, config in CONFIGS.items():
        make(name, config)
    make_tokenizer(GOLDEN / "llama", 300)
    versions = {x.__name__: x.__version__ for x in (torch, transformers, tokenizers)}
    (GOLDEN / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
