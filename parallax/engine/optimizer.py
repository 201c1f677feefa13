"""AdamW, Lion and Muon with warmup, cosine decay and clipping, for `parallax train`.

Each is a frozen value of settings that builds its optax transformation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, muon

from parallax.codec import tagged_union
from parallax.models.parameters import FIRST_LAYERS
from parallax.programs.optimizer_state import map_copies

MomentDType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class OptimizerSettings:
    """What all optimizers of `parallax train` have in common.

    Attributes:
      learning_rate: the learning rate at the end of the warmup.
      warmup_steps: steps of a linear warmup from 0.
      final_share: share of learning_rate that a cosine reaches at the last step.
      weight_decay: weight decay of matrices and tables; norms and biases have none.
      clip_norm: largest global norm of the gradients; 0 disables clipping.
      b1, b2: decay rates of the two moments, or of Lion's one.
      moment_dtype: the dtype in which moments are kept between steps; None is the parameters'. Each
        step computes in the parameters' dtype.
    """

    learning_rate: float = 3e-4
    warmup_steps: int = 20
    final_share: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.95
    moment_dtype: MomentDType | None = None

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
        whole = optax.chain(*clip, self._update(self.schedule(steps)))
        return whole if self.moment_dtype is None else hold_moments(whole, self.moment_dtype)

    def _update(self, rate: optax.Schedule) -> optax.GradientTransformation:
        raise NotImplementedError


@dataclass(frozen=True)
class Adamw(OptimizerSettings):
    """The settings of AdamW, which `parallax train` uses by default.

    Reference: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017.
    """

    def _update(self, rate):
        return optax.adamw(rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=decayed)


@dataclass(frozen=True)
class Lion(OptimizerSettings):
    """The settings of Lion, which keeps one moment: half of AdamW's state.

    Its updates are signs, so it wants a smaller learning rate than AdamW and a larger decay.

    Reference: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.3
    b2: float = 0.99

    def _update(self, rate):
        return optax.lion(rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=decayed)


@dataclass(frozen=True)
class Muon(OptimizerSettings):
    """The settings of Muon, which orthogonalises the momentum of each matrix of the layers.

    Tables, the unembedding, norms and biases are AdamW's, with b1 and b2. A matrix's update has the
    root mean square of AdamW's (0.2), so AdamW's learning rates and decay carry over.

    Attributes:
      momentum: decay rate of the matrices' moment.

    Cost: five Newton-Schulz iterations per matrix and step, 10 x (rows + 2 columns) x rows^2 FLOPs
      for rows <= columns, on whole matrices: XLA gathers those that are split, or their products.

    Reference: Jordan et al., "Muon", 2024; Liu et al., "Muon is Scalable for LLM Training", 2025.
    """

    momentum: float = 0.95

    def _update(self, rate):
        dims: Any = matrix_dims  # optax calls it with the parameters
        direction = muon(
            1.0, beta=self.momentum, adam_b1=self.b1, adam_b2=self.b2, consistent_rms=0.2,
            muon_weight_dimension_numbers=dims,
        )  # fmt: skip
        # Decay is added here, as Muon's own for AdamW's parameters has no mask.
        return optax.chain(
            direction, optax.scale(-1.0), optax.add_decayed_weights(self.weight_decay, decayed),
            optax.scale_by_learning_rate(rate),
        )  # fmt: skip


OPTIMIZERS: Mapping[str, type[OptimizerSettings]] = {"adamw": Adamw, "lion": Lion, "muon": Muon}
tagged_union(OptimizerSettings, "kind", OPTIMIZERS)


def decayed(params: Any) -> Any:
    """Return True for the parameters that decay, matrices and tables, judged by name."""

    def is_matrix(path, _) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not any(word in name for word in ("scale", "shift", "bias", "sinks"))

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def matrix_dims(params: nnx.State) -> Any:
    """Return the dims of the layers' matrices that Muon takes as rows and columns; None for others.

    Layers and experts are matrices of their own; heads and head_dim are one dim.
    """

    def dims(path, w):
        inputs = w.get_metadata().get("inputs", ())
        if path[0] not in ("layers", FIRST_LAYERS) or not inputs:
            return w.replace(None)
        rows = tuple(1 + dim for dim in inputs)  # after the stack of layers
        columns = tuple(
            dim for dim, name in enumerate(w.out_sharding)
            if dim and dim not in rows and name != "expert"
        )  # fmt: skip
        return w.replace(MuonDimensionNumbers(rows, columns))

    return nnx.map_state(dims, params)


def hold_moments(
    inner: optax.GradientTransformation, dtype: MomentDType
) -> optax.GradientTransformation:
    """Keep the moments of any transformation in another dtype between its steps.

    They are rounded after a step and cast back before the next, so `inner` computes as ever.
    """

    def narrow(state):
        def cast(x):
            return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return map_copies(lambda _, copy: jax.tree.map(cast, copy), lambda _, x: x, state)

    def init(params):
        return narrow(inner.init(params))

    def update(updates, state, params=None):
        like = jax.eval_shape(inner.init, updates if params is None else params)
        wide = jax.tree.map(lambda x, like: x.astype(like.dtype), state, like)
        updates, wide = inner.update(updates, wide, params)
        return updates, narrow(wide)

    return optax.GradientTransformation(init, update)
