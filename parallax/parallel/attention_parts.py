"""The attention parts of strategies, by the names that strategy files use."""

from parallax.parallel.attention_part import AttentionPart, AttentionShape, Local
from parallax.parallel.head_slices import HeadSlices
from parallax.parallel.ring_part import Ring
from parallax.parallel.ulysses import Ulysses

ATTENTION_PARTS = {
    "local": Local,
    "ring": Ring,
    "ulysses": Ulysses,
    "head_slices": HeadSlices,
}

__all__ = [
    "ATTENTION_PARTS", "AttentionPart", "AttentionShape", "HeadSlices", "Local", "Ring", "Ulysses",
]  # fmt: skip
