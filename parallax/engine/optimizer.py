"""AdamW with warmup, cosine decay and gradient clipping."""

from dataclasses import dataclass
from typing import Any

import jax
import optax


@dataclass(frozen=True)
class Adamw:
    """The settings of AdamW, which `parallax train` uses.

    Attributes:
      learning_rate: the learning rate at the end of the warmup.
      warmup_steps: steps of a linear warmup from 0.
      final_share: share of learning_rate that a cosine reaches at the last step.
      weight_decay: weight decay of matrices and tables; norms and biases have none.
      clip_norm: largest global norm of the gradients; 0 disables clipping.
      b1, b2: decay rates of the two moments.
    """

    learning_rate: float = 3e-4
    warmup_steps: int = 20
    final_share: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.95

    def __post_init__(self):
        for name in ("learning_rate", "weight_decay", "clip_norm", "final_share"):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (name == "learning_rate" and not value):
                raise ValueError(f"{name} must be a positive number, got {value}.")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps}.")

    def schedule(self, steps: int) -> optax.Schedule:
        """Return the learning rate schedule of a run of this many steps."""
        return optax.warmup_cosine_decay_schedule(
            0.0 if self.warmup_steps else self.learning_rate, self.learning_rate,
            self.warmup_steps, max(steps, self.warmup_steps + 1),
            self.learning_rate * self.final_share,
        )  # fmt: skip

    def build(self, steps: int) -> optax.GradientTransformation:
        """Build the optax transformation for a run of this many steps."""
        clip = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        return optax.chain(
            *clip,
            optax.adamw(self.schedule(steps), self.b1, self.b2, weight_decay=self.weight_decay,
                        mask=decayed),
        )  # fmt: skip


def decayed(params: Any) -> Any:
    """Return True for the parameters that decay, matrices and tables, judged by name."""

    def is_matrix(path, _) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not any(word in name for word in ("scale", "shift", "bias"))

    return jax.tree_util.tree_map_with_path(is_matrix, params)
