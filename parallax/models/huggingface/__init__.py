"""Published weights: folders in Hugging Face's layout, to and from a Transformer under a strategy.

Llama, GPT-2, Qwen3 and Mixtral; config.json, *.safetensors and tokenizer.json, nothing pickled.
"""

from parallax.models.huggingface.configs import read_config
from parallax.models.huggingface.reading import load
from parallax.models.huggingface.tokenizer import ByteTokenizer, Tokenizer, read_tokenizer
from parallax.models.huggingface.writing import save

__all__ = ["ByteTokenizer", "Tokenizer", "load", "read_config", "read_tokenizer", "save"]
