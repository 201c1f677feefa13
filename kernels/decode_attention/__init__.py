"""Attention of one query a sequence to a long cache: a partial softmax over the slots here."""

from parallax.kernels.decode_attention.api import NewToken, decode_attention, merge

__all__ = ["NewToken", "decode_attention", "merge"]
