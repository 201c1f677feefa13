"""The unsharded reference model of the verify lens, with textbook attention and experts."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from parallax.models.transformer import Transformer
from parallax.parallel.attention_parts import Local
from parallax.parallel.experts import LocalExperts
from parallax.parallel.split import Split


@dataclass(frozen=True)
class Plain(Local):
    """The textbook's attention, softmax(Q K^T / sqrt(K)) V: all scores at once, float32 or more."""

    def attend(
        self, q, k, v, *, scoring, segment_ids, sinks=None, partial_over=None, value_dim=None,
        whole_heads=False,
    ):  # fmt: skip
        assert partial_over is None, "the textbook has whole heads"
        assert v is not None, "the textbook has values of their own"
        wide = jnp.float64 if q.dtype == jnp.float64 else jnp.float32
        repeats = q.shape[2] // k.shape[2]
        k, v = (jnp.repeat(x, repeats, axis=2) for x in (k, v))
        scores = jnp.einsum("blhk,bmhk->bhlm", q, k, preferred_element_type=wide)
        seen = jnp.ones((1, 1, q.shape[1], k.shape[1]), bool)
        if scoring.is_causal:
            seen = jnp.tril(seen[0, 0])[None, None]
        if scoring.window is not None:
            seen = seen & ~jnp.tril(seen[0, 0], -scoring.window)[None, None]
        if segment_ids is not None:
            seen = seen & (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
        scale = q.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
        scores = scores * jnp.asarray(scale, wide)
        if scoring.cap is not None:
            scores = jnp.tanh(scores / scoring.cap) * scoring.cap
        scores = jnp.where(seen, scores, -jnp.inf)
        if sinks is not None:
            sink = jnp.broadcast_to(sinks.astype(wide)[None, :, None, None], scores[..., :1].shape)
            scores = jnp.concatenate([scores, sink], axis=-1)
        weights = jax.nn.softmax(scores, axis=-1)[..., : k.shape[1]].astype(v.dtype)
        return jnp.einsum("bhlm,bmhk->blhk", weights, v, preferred_element_type=wide).astype(
            q.dtype
        )


@dataclass(frozen=True)
class EveryExpert(LocalExperts):
    """The textbook's experts: every expert runs on every token, and the gates select outputs."""

    def run(
        self, x_TD, routing, weights, *, num_experts, expert_axes, platform, decodes=False
    ):  # fmt: skip
        up_TEF = _plus(jnp.einsum("td,edf->tef", x_TD, weights.up_eDF), weights.up_bias_eF)
        gate_TEF = None
        if weights.gate_eDF is not None:
            gate_TEF = jnp.einsum("td,edf->tef", x_TD, weights.gate_eDF)
            gate_TEF = _plus(gate_TEF, weights.gate_bias_eF)
        h_TEF = weights.hidden(up_TEF, gate_TEF)
        y_TED = jnp.einsum("tef,efd->ted", h_TEF, weights.down_eFD)
        y_TED = _plus(y_TED, weights.down_bias_eD)
        chosen_TkE = jax.nn.one_hot(routing.ids_Tk, num_experts, dtype=routing.gates_Tk.dtype)
        gates_TE = (chosen_TkE * routing.gates_Tk[:, :, None]).sum(1)
        y_TD = jnp.einsum("te,ted->td", gates_TE, y_TED.astype(gates_TE.dtype))
        return y_TD.astype(x_TD.dtype), jnp.zeros((), jnp.int32)


def _plus(y_TEn, bias_En):
    return y_TEn if bias_En is None else y_TEn + bias_En[None]


_TEXTBOOK = Split(attention=Plain(), experts=EveryExpert(), record_choices=True)


def reference(
    model: Transformer, tokens_BL: jax.Array, segment_ids_BL=None, expert_ids_BLNk=None
) -> tuple[jax.Array, Any]:
    """Run the unsharded model on one device.

    Args:
      model: the unsharded model.
      tokens_BL, segment_ids_BL: [B, L] integers; None for one document per sequence.
      expert_ids_BLNk: [B, L, N, k] fixed routing; None lets the routers choose.

    Returns:
      Logits [B, L, V]; (RouterStats per layer, expert choices [B, L, N, k]), or () without experts.
    """
    fixed_ids = None if expert_ids_BLNk is None else jnp.moveaxis(expert_ids_BLNk, 2, 0)
    logits, stats = model.run(tokens_BL, segment_ids_BL, _TEXTBOOK, fixed_ids)
    if not model.config.num_experts:
        return logits, ()
    stats, ids_NTk = stats
    ids_NBLk = ids_NTk.reshape(ids_NTk.shape[0], *tokens_BL.shape, -1)
    return logits, (stats, jnp.moveaxis(ids_NBLk, 0, 2))
