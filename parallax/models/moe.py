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
from parallax.models.layer_kinds import Router
from parallax.models.packed_weight import factor
from parallax.models.weights import WideParam, bias, weight
from parallax.parallel.experts import ExpertWeights, RoutingRule, route, router_stats
from parallax.parallel.products import product
from parallax.parallel.split import Split


class Moe(nnx.Module):
    """The weighted sum of `config.experts_per_token` out of `config.num_experts` MLPs per token.

    Args:
      config: sizes and choices.
      shared: the MLP that every token passes besides, a `block.Mlp`; None is none.
      rngs: a stream named "params".
    """

    def __init__(self, config: ModelConfig, shared: Any = None, *, rngs: nnx.Rngs):
        self.config = config
        e, d, f = config.num_experts, config.d_model, config.d_ff
        self.router_DE = weight(config, rngs, (d, e), ("embed", None), d)
        router = config.router or Router()
        self.rule = RoutingRule(
            router.scores, router.normalize, router.scale, router.groups, router.groups_per_token,
            router.group_score,
        )  # fmt: skip
        wide = "float64" if config.dtype == "float64" else "float32"
        learned, of_choice = router.bias == "logits", router.bias == "choice"
        self.router_bias_E = bias((e,), (None,), config.dtype) if learned else None
        self.choice_bias_E = bias((e,), (None,), wide, WideParam) if of_choice else None
        matrix = functools.partial(weight, config, rngs, inputs=(1,), part="mlp")
        self.up_EDF = matrix((e, d, f), ("expert", "embed", "mlp"), d)
        self.down_EFD = matrix((e, f, d), ("expert", "mlp", "embed"), f)
        has_gate = config.mlp == "gated"
        self.gate_EDF = matrix((e, d, f), ("expert", "embed", "mlp"), d) if has_gate else None

        def added(size: int, name: str, is_there: bool = True):
            if config.bias and is_there:
                return bias((e, size), ("expert", name), config.dtype)
            return None

        self.up_bias_EF, self.down_bias_ED = added(f, "mlp"), added(d, "embed")
        self.gate_bias_EF = added(f, "mlp", has_gate)
        self.shared = shared

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
            if self.router_bias_E is not None:
                logits_TE = logits_TE + self.router_bias_E[...].astype(wide)[None]
            choice_bias_E = None if self.choice_bias_E is None else self.choice_bias_E[...]
            fixed_ids = None
            if expert_ids_BLk is not None:
                fixed_ids = expert_ids_BLk.reshape(-1, expert_ids_BLk.shape[-1])
            routing = route(
                logits_TE, config.experts_per_token, fixed_ids,
                rule=self.rule, choice_bias_E=choice_bias_E,
            )  # fmt: skip
        y_TD, dropped = split.experts.run(
            x_TD, routing, self._weights(split),
            num_experts=config.num_experts, expert_axes=split.over("expert"),
            platform=split.platform, decodes=split.decodes,
        )  # fmt: skip
        stats = router_stats(
            logits_TE, routing, dropped, rule=self.rule, choice_bias_E=choice_bias_E
        )
        y_BLD = y_TD.reshape(x_BLD.shape)
        if self.shared is None:
            y_BLD = split.sum(y_BLD, *split.expert_sums)
        else:
            y_BLD = split.sum(y_BLD + self._shared_term(x_BLD, split), *split.expert_sums)
            y_BLD = self.shared.with_bias(y_BLD, split)
        return y_BLD, (stats, routing.ids_Tk) if split.record_choices else stats

    def _weights(self, split: Split) -> ExpertWeights:
        def read(w):
            return None if w is None else w[...]

        down_bias = read(self.down_bias_ED)
        if down_bias is not None:  # outputs are partial sums over F, and a bias counts once
            down_bias = split.once(down_bias, split.over("mlp"))
        return ExpertWeights(
            factor(self.up_EDF, split), factor(self.down_EFD, split),
            None if self.gate_EDF is None else factor(self.gate_EDF, split), read(self.up_bias_EF),
            down_bias, read(self.gate_bias_EF), self.config.gate, self.config.gate_limit,
        )  # fmt: skip

    def _shared_term(self, x_BLD, split: Split):
        """Return this device's term of the shared experts' output, for the sum of the experts'.

        Devices that share the width have a part of it each. Where other devices add up experts,
        each has the whole, and one of them adds it.
        """
        summed, width = split.over(*split.expert_sums), split.over("mlp")
        with jax.named_scope("shared_experts"):
            inside = split.replace(axes={**split.axes, "act_mlp": summed})
            h_BLF = self.shared.hidden(x_BLD, inside)
            y_BLD = product(h_BLF, factor(self.shared.down_FD, split), "blf,fd->bld", width)
            return split.once(y_BLD, [a for a in summed if a not in width])
