"""Attention of one query per sequence to a long cache, as a partial softmax over local slots."""

from parallax.kernels.decode_attention.api import NewToken, decode_attention, merge

__all__ = ["NewToken", "decode_attention", "merge"]
