"""The choices inside a layer that families differ in: positions, windows, latents, routers."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from parallax import codec

RopeKind = Literal["linear", "llama3", "yarn"]
Scores = Literal["softmax", "sigmoid"]
GroupScore = Literal["largest", "two_largest"]
RouterBias = Literal["none", "logits", "choice"]


@dataclass(frozen=True)
class RopeScaling:
    """The scaling of rotary frequencies for texts longer than those of a model's first training.

    Attributes:
      kind: "linear" divides all frequencies by `factor`; "llama3" and "yarn" divide the slow ones,
        leave the fast ones unchanged, and interpolate in between.
      factor: at least 1.
      low_freq_factor, high_freq_factor: for "llama3": a pair that makes fewer turns than the first
        in original_max_seq_len tokens is slow, one that makes more than the second is fast.
      original_max_seq_len: the sequence length of the first training, tokens (not for "linear").
      beta_fast, beta_slow: for "yarn": a pair that makes more turns than the first in
        original_max_seq_len tokens is fast, one that makes fewer than the second is slow; in
        between, shares are linear in the pair's number.
      truncate: for "yarn": the first and the last pair in between are whole numbers.
      attention_factor: for "yarn": multiplies the cosines and sines.

    Reference: Chen et al., "Extending Context Window via Position Interpolation", 2023 (linear);
      Grattafiori et al., "The Llama 3 Herd of Models", 2024 (llama3); Peng et al., "YaRN:
      Efficient Context Window Extension of Large Language Models", 2023 (yarn).
    """

    kind: RopeKind
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192
    beta_fast: float = codec.later(32.0, omit=True)
    beta_slow: float = codec.later(1.0, omit=True)
    truncate: bool = codec.later(True, omit=True)
    attention_factor: float = codec.later(1.0, omit=True)

    def __post_init__(self):
        if self.kind not in get_args(RopeKind):
            raise ValueError(
                f"RopeScaling: kind must be {', '.join(get_args(RopeKind))}; got {self.kind!r}."
            )
        if self.factor < 1 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "RopeScaling: factor must be at least 1, and low_freq_factor between 0 and "
                f"high_freq_factor; got {self}."
            )
        if not 0 < self.beta_slow <= self.beta_fast or self.attention_factor <= 0:
            raise ValueError(
                "RopeScaling: beta_slow must be above 0 and at most beta_fast, and "
                f"attention_factor above 0; got {self}."
            )


@dataclass(frozen=True)
class LayerKind:
    """What differs from layer to layer in a pattern of layers.

    Attributes:
      window: tokens that a query sees, its own and those before it; None is all of them.
      rotates: queries and keys are rotated by position, where the model's positions are "rope".
      rope_theta: base of this kind's rotary frequencies, with rope_scaling; None takes both from
        the model.
      rope_scaling: scaling of these frequencies, used with rope_theta.
    """

    window: int | None = None
    rotates: bool = True
    rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self):
        if self.window is not None and self.window < 1:
            raise ValueError(f"LayerKind: window must be at least 1 or None, got {self.window}.")
        if self.rope_scaling is not None and self.rope_theta is None:
            raise ValueError("LayerKind: rope_scaling needs the rope_theta that it scales.")


EVERY_TOKEN = LayerKind()


@dataclass(frozen=True)
class LatentAttention:
    """The sizes of multi-head latent attention: keys and values made from one latent per token.

    Attributes:
      kv_rank: width of the latent, which is cached with the rotated key.
      q_rank: width of the queries' own latent; None makes queries in one product.
      rope_dim: width of the rotated part of queries and keys; one key for all heads. Even.
      value_dim: width of a head's values.

    `ModelConfig.head_dim` is the width of a head's queries and keys, rope_dim included.

    Reference: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.
    """

    kv_rank: int
    q_rank: int | None
    rope_dim: int
    value_dim: int

    def __post_init__(self):
        sizes = (self.kv_rank, self.rope_dim, self.value_dim, self.q_rank or 1)
        if min(sizes) < 1 or self.rope_dim % 2:
            raise ValueError(
                f"LatentAttention: widths must be at least 1 and rope_dim even; got {self}."
            )

    @property
    def cached(self) -> int:
        """The elements that a token's cache holds in one layer."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True)
class Router:
    """How a router chooses experts and weights them.

    Attributes:
      scores: probabilities of experts from logits: "softmax" over all, or "sigmoid" of each.
      normalize: the weights of a token's choices are divided by their sum (of several choices).
      scale: factor of all weights.
      bias: "logits" adds a learned bias to the logits; "choice" adds one to the probabilities for
        the choice only (auxiliary-loss-free balancing), which no gradient trains.
      groups: equal groups of consecutive experts, of which a token uses groups_per_token.
      groups_per_token: groups that a token may choose from.
      group_score: a group's rank is its largest probability or the sum of its two largest.

    Reference: DeepSeek-AI, "DeepSeek-V3", 2024, section 2.1.2 (sigmoid, choice bias, groups).
    """

    scores: Scores = "softmax"
    normalize: bool = True
    scale: float = 1.0
    bias: RouterBias = "none"
    groups: int = 1
    groups_per_token: int = 1
    group_score: GroupScore = "largest"

    def __post_init__(self):
        for name, choices in (
            ("scores", Scores),
            ("bias", RouterBias),
            ("group_score", GroupScore),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"Router: {name} must be one of {', '.join(get_args(choices))}; got "
                    f"{getattr(self, name)!r}."
                )
        if not 1 <= self.groups_per_token <= self.groups or not 0 < self.scale < math.inf:
            raise ValueError(
                f"Router: groups_per_token must be 1 to groups, and scale positive; got {self}."
            )
