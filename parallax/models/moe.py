"""The mixture of experts that replaces the MLP: a router, and E MLPs of which each token uses k.

Shapes: B batch, L tokens per sequence, T = B L tokens; D model width, E experts, F width of an
expert, k choices per token.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from parallax.models.config import ModelConfig
from parallax.models.weights import weight
from parallax.parallel.experts import ExpertWeights, route, router_stats
from parallax.parallel.split import Split


class Moe(nnx.Module):
    """The weighted sum of `config.experts_per_token` out of `config.num_experts` MLPs per token."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        e, d, f = config.num_experts, config.d_model, config.d_ff
        self.router_DE = weight(config, rngs, (d, e), ("embed", None), d)
        matrix = functools.partial(weight, config, rngs, inputs=(1,), part="mlp")
        self.up_EDF = matrix((e, d, f), ("expert", "embed", "mlp"), d)
        self.down_EFD = matrix((e, f, d), ("expert", "mlp", "embed"), f)
        if config.mlp == "gated":
            self.gate_EDF = matrix((e, d, f), ("expert", "embed", "mlp"), d)

    def __call__(self, x_BLD, split: Split, expert_ids_BLk=None) -> tuple[jax.Array, Any]:
        """Return the mixture, and the router's statistics.

        Args:
          x_BLD: this device's tokens.
          split: its `experts` part says how tokens reach their experts.
          expert_ids_BLk: fixed routing instead of the router's own choices.

        Returns:
          [B, L, D], and RouterStats (paired with the choices [T, k] if `split.record_choices`).
        """
        config = self.config
        x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
        wide = jnp.float64 if x_TD.dtype == jnp.float64 else jnp.float32
        with jax.named_scope("router"):
            logits_TE = x_TD.astype(wide) @ self.router_DE[...].astype(wide)
            fixed_ids = None
            if expert_ids_BLk is not None:
                fixed_ids = expert_ids_BLk.reshape(-1, expert_ids_BLk.shape[-1])
            routing = route(logits_TE, config.experts_per_token, fixed_ids)
        gate = self.gate_EDF[...] if config.mlp == "gated" else None
        y_TD, dropped = split.experts.run(
            x_TD, routing, ExpertWeights(self.up_EDF[...], self.down_EFD[...], gate),
            num_experts=config.num_experts, expert_axes=split.over("expert"),
            platform=split.platform,
        )  # fmt: skip
        stats = router_stats(logits_TE, routing, dropped)
        y_BLD = split.sum(y_TD.reshape(x_BLD.shape), *split.expert_sums)
        return y_BLD, (stats, routing.ids_Tk) if split.record_choices else stats
