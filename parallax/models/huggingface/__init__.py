"""The reading and writing of folders in Hugging Face's layout, under any strategy.

Supported are the families of `families/`, from config.json, *.safetensors and tokenizer.json;
pickled files are not read.
"""

from parallax.models.huggingface.configs import read_config
from parallax.models.huggingface.reading import load
from parallax.models.huggingface.tokenizer import ByteTokenizer, Tokenizer, read_tokenizer
from parallax.models.huggingface.writing import save

__all__ = ["ByteTokenizer", "Tokenizer", "load", "read_config", "read_tokenizer", "save"]
