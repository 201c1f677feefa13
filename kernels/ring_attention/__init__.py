"""One step of online-softmax attention, forward and backward, which a ring chains over devices."""

from parallax.kernels.ring_attention.api import (
    Carry,
    attention_step,
    attention_step_backward,
    empty_carry,
    finish,
)
from parallax.kernels.ring_attention.reference import block_size, score_elements

__all__ = [
    "Carry",
    "attention_step",
    "attention_step_backward",
    "block_size",
    "empty_carry",
    "finish",
    "score_elements",
]
