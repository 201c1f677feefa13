"""The families of published models. A new one is a file here and its entry in FAMILIES."""

from collections.abc import Mapping

from parallax.models.huggingface.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from parallax.models.huggingface.families.family import Family
from parallax.models.huggingface.families.gemma import GEMMA2, GEMMA3, GEMMA3_TEXT
from parallax.models.huggingface.families.gpt2 import GPT2
from parallax.models.huggingface.families.gpt_oss import GPT_OSS
from parallax.models.huggingface.families.llama import LLAMA, MISTRAL, MIXTRAL, OLMO2, SMOLLM3
from parallax.models.huggingface.families.phi3 import PHI3
from parallax.models.huggingface.families.qwen import QWEN2, QWEN3, QWEN3_MOE

__all__ = ["FAMILIES", "Family"]

# A model that several families hold is written as the first of them.
FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (
        LLAMA, GPT2, QWEN3, MIXTRAL, MISTRAL, QWEN2, QWEN3_MOE, PHI3, GEMMA3_TEXT, GEMMA3, GEMMA2,
        GPT_OSS, OLMO2, DEEPSEEK_V2, DEEPSEEK_V3, SMOLLM3,
    )
}  # fmt: skip
