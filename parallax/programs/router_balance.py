"""The routers' load-balancing loss over the whole batch, from one device's statistics."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from parallax.models.config import ModelConfig
from parallax.parallel.balance import total_stats
from parallax.parallel.experts import RouterStats
from parallax.parallel.split import Split
from parallax.parallel.stage_layers import pad_layers, unpad_layers
from parallax.parallel.varying import vary_over
from parallax.programs.gradient_sums import TOKENS
from parallax.workload import Workload


@dataclass(frozen=True)
class RouterBalance:
    """The load-balancing loss E sum_e f_e P_e of every layer, on one device.

    The counts f_e have no gradient and are those of all devices and microbatches; each device and
    microbatch then has its own term, linear in its probabilities P_e.

    Attributes:
      config, workload, split: the model, its work and how it is split.
      groups, chunks: layers of each pipeline stage, and how many chunks they are.
    """

    config: ModelConfig
    workload: Workload
    split: Split
    groups: tuple[int, ...]
    chunks: int = 1

    @property
    def is_used(self) -> bool:
        """Whether the model has such a loss."""
        return bool(self.config.num_experts and self.config.load_balance)

    @property
    def alike(self) -> tuple[str, ...]:
        """The mesh axes whose devices route the same tokens."""
        tokens = self.split.over(*TOKENS)
        return tuple(a for a in self.split.over("mlp", "expert") if a not in tokens)

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which devices' terms add up."""
        return (*self.split.over(*TOKENS), *self.alike, *self.split.over("layers"))

    @property
    def repeats(self) -> int:
        """The number of devices that count each token."""
        return math.prod(self.split.mesh_axes[a] for a in self.alike)

    def chosen(self, tokens_MNE: jax.Array) -> jax.Array:
        """Return how often each expert of this device's layers is chosen in the whole batch.

        Args:
          tokens_MNE: int32, this device's choices in its microbatches.

        Cost: an all-reduce of [layers, E] int32 over the devices with other tokens, or the same.
        """
        chosen_NE = tokens_MNE.sum(0, dtype=jnp.int32)
        return sum_over(chosen_NE, (*self.split.over(*TOKENS), *self.alike)) // self.repeats

    def term(self, probability_NE: jax.Array, chosen_NE: jax.Array) -> jax.Array:
        """Return this device's term of its layers' loss, for one microbatch or several.

        Args:
          probability_NE: sums of probabilities over this device's tokens.
          chosen_NE: the counts of `chosen`.
        """
        config, tokens = self.config, self.workload.tokens
        mean_NE = probability_NE / (tokens * self.repeats)
        share_NE = chosen_NE.astype(mean_NE.dtype) / (tokens * config.experts_per_token)
        losses_N = config.num_experts * (lax.stop_gradient(share_NE) * mean_NE).sum(-1)
        if len(set(self.groups)) > 1:  # layers of zeros have no loss
            ones = jnp.ones(config.stacked_layers, losses_N.dtype)
            losses_N *= of_stage(ones, self.split, self.groups)
        return config.load_balance * losses_N.sum()

    def with_penalty(self, loss: jax.Array, penalty: jax.Array | None) -> jax.Array:
        """Return the loss over all devices, from this device's terms; None is no penalty.

        Cost: an all-reduce of one number, or of two that different devices add up.
        """
        tokens = self.split.over(*TOKENS)
        if penalty is None:
            return sum_over(loss, tokens)
        penalty = penalty.astype(loss.dtype)
        if set(self.axes) == set(tokens):  # XLA makes one sum of two
            return sum_over(loss + penalty, tokens)
        return sum_over(loss, tokens) + sum_over(penalty, self.axes)

    def statistics(self, stats: RouterStats) -> RouterStats:
        """Return the RouterStats of all layers, devices and microbatches, [N, ...]."""
        stats = total_stats(stats, self.split.over(*TOKENS), self.alike)
        stage = self.split.over("layers")
        if not stage:
            return stats
        return jax.tree.map(
            lambda x: unpad_layers(
                lax.all_gather(x, stage, tiled=True, to="invarying"), self.groups, self.chunks
            ),
            stats,
        )


def of_stage(x: jax.Array, split: Split, groups: tuple[int, ...], chunks: int = 1) -> jax.Array:
    """Return this device's layers of an array with a leading N (all layers)."""
    axes = split.over("layers")
    if not axes:
        return x
    count = max(groups)
    return lax.dynamic_slice_in_dim(
        pad_layers(x, groups, chunks), lax.axis_index(axes) * count, count
    )


def sum_over(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Sum over mesh axes; none sum nothing."""
    return lax.psum(vary_over(x, axes), axes) if axes else x
