"""The configuration of a transformer: sizes and choices, as one frozen value."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from parallax import codec
from parallax.compression import parse_format
from parallax.models.layer_kinds import EVERY_TOKEN, LatentAttention, LayerKind, RopeScaling, Router

Mlp = Literal["gelu", "gated"]
Gate = Literal["silu", "gelu", "clamped"]
Norms = Literal["before", "after", "both"]
QkNorm = Literal["head", "all"]
Norm = Literal["rmsnorm", "layernorm"]
Positions = Literal["rope", "learned", "none"]
DType = Literal["float16", "bfloat16", "float32", "float64"]

_CHOICES = {
    "mlp": Mlp, "norm": Norm, "positions": Positions, "gate": Gate, "norms": Norms,
    "qk_norm_width": QkNorm,
}  # fmt: skip
_MAY_BE_ZERO = ("num_experts", "shared_experts", "dense_layers", "dense_d_ff")
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
BYTE_VOCAB = 256
PARTS = ("attention", "mlp")  # the parts of a layer, in the order of `ModelConfig.compression`


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a decoder or encoder transformer with grouped-query attention.

    Attributes:
      num_layers: transformer blocks, stacked and scanned.
      d_model: width of the residual stream.
      num_heads: query heads.
      num_kv_heads: key/value heads; num_heads for multi-head attention (MHA), fewer for GQA.
      head_dim: width of one head; num_heads * head_dim need not be d_model.
      d_ff: hidden width of the MLP.
      vocab_size: rows of the token table and columns of the unembedding.
      mlp: "gelu" (two matrices) or "gated" (three matrices, see `gate`).
      norm: "rmsnorm" or "layernorm"; computed in float32 or wider.
      positions: "rope", "learned" (a table of max_seq_len rows) or "none".
      causal: a token sees itself and earlier tokens; otherwise all tokens.
      dtype: dtype of parameters and activations.
      max_seq_len: rows of the learned position table, tokens.
      num_experts: MLPs per layer, each of width d_ff; 0 is one MLP without a router.
      experts_per_token: MLPs that each token passes through (top-k).
      load_balance: weight of the routers' load-balancing loss, summed over layers.
      qk_norm: RMSNorm of every query and key head over head_dim, before positions.
      bias: all matrices of attention and MLP or experts add a bias; a router's is its own choice.
      tie_embeddings: the unembedding is the transposed token table, the same parameter.
      rope_theta: base of the rotary frequencies.
      rope_scaling: scaling for positions="rope"; None leaves the frequencies unchanged.
      norm_epsilon: added to a norm's variance.
      compression: formats in which the matrices of attention and of the MLP (all experts) are
        stored, as `parallax.compression.parse_format` reads them; None is `dtype`. Norms, biases,
        routers and tables stay in `dtype`. A compressed model computes another function.
      pattern: the kinds of layers, repeated: layer i is of kind i mod len(pattern); () is one kind
        that sees all tokens.
      latent: multi-head latent attention instead of grouped queries; num_kv_heads is num_heads.
      sinks: every query head has a learned score of a sink, in the softmax's sum only.
      score_cap: scores s become cap * tanh(s / cap), before the mask.
      logit_cap: logits too.
      score_scale: scale of the scores; None is head_dim ** -0.5.
      rotary_dim: leading elements of each head that are rotated; None is all of head_dim.
      qkv_bias: queries, keys and values add a bias, also where `bias` is False.
      qk_norm_width: qk_norm over each head, or over all heads together.
      norms: norms before attention and MLP, after them (before the residual sum), or both.
      norm_offset: norms multiply by 1 + scale.
      embed_scale: factor of looked-up embeddings, rounded to `dtype`.
      gate: of mlp="gated": SiLU, GELU (tanh), or "clamped": x * sigmoid(1.702 x) of the gate
        clamped from above at gate_limit, times the other product clamped at both sides plus 1.
      gate_limit: the limit of gate="clamped".
      shared_experts: experts that every token passes, as one MLP of width shared_experts * d_ff.
      dense_layers: first layers with an MLP of width dense_d_ff instead of experts; every stage of
        a pipeline holds and runs them.
      router: how experts are chosen and weighted; None is Router().
    """

    name: str
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    mlp: Mlp = "gelu"
    norm: Norm = "rmsnorm"
    positions: Positions = "rope"
    causal: bool = True
    dtype: DType = "float16"
    max_seq_len: int = 10_000
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    num_experts: int = 0
    experts_per_token: int = 2
    load_balance: float = 0.01
    qk_norm: bool = False
    bias: bool = False
    tie_embeddings: bool = False
    rope_scaling: RopeScaling | None = None
    compression: tuple[str, str] | None = codec.later(None)
    pattern: tuple[LayerKind, ...] = codec.later((), omit=True)
    latent: LatentAttention | None = codec.later(None, omit=True)
    sinks: bool = codec.later(False, omit=True)
    score_cap: float | None = codec.later(None, omit=True)
    logit_cap: float | None = codec.later(None, omit=True)
    score_scale: float | None = codec.later(None, omit=True)
    rotary_dim: int | None = codec.later(None, omit=True)
    qkv_bias: bool = codec.later(False, omit=True)
    qk_norm_width: QkNorm = codec.later("head", omit=True)
    norms: Norms = codec.later("before", omit=True)
    norm_offset: bool = codec.later(False, omit=True)
    embed_scale: float | None = codec.later(None, omit=True)
    gate: Gate = codec.later("silu", omit=True)
    gate_limit: float = codec.later(7.0, omit=True)
    shared_experts: int = codec.later(0, omit=True)
    dense_layers: int = codec.later(0, omit=True)
    dense_d_ff: int = codec.later(0, omit=True)
    router: Router | None = codec.later(None, omit=True)

    def __post_init__(self):
        object.__setattr__(self, "pattern", tuple(self.pattern))
        if self.compression is not None:
            object.__setattr__(self, "compression", tuple(self.compression))
            self._check_compression(*self.compression)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if field.type is int and (not isinstance(value, int) or value < least):
                raise ValueError(
                    f"ModelConfig '{self.name}': {field.name} must be an integer of at least "
                    f"{least}, got {value!r}."
                )
        for name, choices in _CHOICES.items():
            _one_of(self.name, name, getattr(self, name), get_args(choices))
        _one_of(self.name, "dtype", self.dtype, get_args(DType))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"ModelConfig '{self.name}': num_kv_heads={self.num_kv_heads} does not divide "
                f"num_heads={self.num_heads}. Every key/value head serves the same number of query "
                "heads."
            )
        if self.num_experts and self.experts_per_token > self.num_experts:
            raise ValueError(
                f"ModelConfig '{self.name}': a token cannot pass through {self.experts_per_token} "
                f"of {self.num_experts} experts. Use experts_per_token of at most num_experts."
            )
        if self.rope_scaling is not None and self.positions != "rope":
            raise ValueError(
                f"ModelConfig '{self.name}': rope_scaling needs positions='rope', got "
                f"{self.positions!r}. Leave out one of them."
            )
        self._check_kinds()
        if self.positions == "rope" and self.rotated_dim % 2:
            whole = self.rotated_dim == self.head_dim
            rotated = f"{'head_dim' if whole else 'rotary_dim'}={self.rotated_dim}"
            raise ValueError(
                f"ModelConfig '{self.name}': RoPE rotates pairs, {rotated} is odd. "
                "Use an even head_dim, or positions='learned' or 'none'."
            )

    def _check_kinds(self) -> None:
        """Check the choices that name layers' kinds, latents, experts and norms."""
        rules = self._attention_rules() | self._expert_rules()
        if said := [rule for rule, is_kept in rules.items() if not is_kept]:
            raise ValueError(f"ModelConfig '{self.name}': {'; '.join(said)}.")

    def _attention_rules(self) -> dict[str, bool]:
        windows = any(kind.window is not None for kind in self.kinds)
        rules = {
            "windows need causal=True": self.causal or not windows,
            "rotary_dim is at most head_dim, and not of latent attention": self.rotary_dim is None
            or (self.rotary_dim <= self.head_dim and self.latent is None),
            "rotary_dim is at least 2": self.rotary_dim is None or self.rotary_dim > 1,
            "score_cap, logit_cap, score_scale, embed_scale and gate_limit are above 0": all(
                x is None or x > 0
                for x in (
                    self.score_cap,
                    self.logit_cap,
                    self.score_scale,
                    self.embed_scale,
                    self.gate_limit,
                )
            ),
            "norm_offset needs norm='rmsnorm'": not self.norm_offset or self.norm == "rmsnorm",
            "gate needs mlp='gated'": self.gate == "silu" or self.mlp == "gated",
        }
        if self.latent is None:
            return rules
        others = (self.pattern, self.sinks, self.bias, self.qkv_bias, self.qk_norm)
        return rules | {
            "latent attention has num_kv_heads = num_heads": self.num_kv_heads == self.num_heads,
            "latent attention has positions='rope' and none of sinks, bias, qk_norm, pattern": (
                self.positions == "rope" and not any(others)
            ),
            "rope_dim is less than head_dim": self.latent.rope_dim < self.head_dim,
        }

    def _expert_rules(self) -> dict[str, bool]:
        rules = {
            "dense_layers are whole patterns": self.dense_layers % len(self.kinds) == 0,
            "compression of a model with dense_layers is not there yet": not self.dense_layers
            or self.compression is None,
            "dense_d_ff needs dense_layers": bool(self.dense_layers) or not self.dense_d_ff,
            "dense_layers are fewer than num_layers and have a dense_d_ff": not self.dense_layers
            or (self.dense_layers < self.num_layers and self.dense_d_ff > 0),
        }
        if self.num_experts:
            said = "groups of experts are equal, and enough for a token's choices"
            return rules | {said: self._groups_fit()}
        others = (self.shared_experts, self.dense_layers, self.router)
        return rules | {"shared_experts, dense_layers and router need num_experts": not any(others)}

    def _groups_fit(self) -> bool:
        router = self.router or Router()
        per_group = self.num_experts // router.groups
        return (
            self.num_experts % router.groups == 0
            and router.groups_per_token * per_group >= self.experts_per_token
            and (router.groups == 1 or router.group_score == "largest" or per_group > 1)
        )

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kinds of layers that repeat over the stack; at least one."""
        return self.pattern or (EVERY_TOKEN,)

    @property
    def rotated_dim(self) -> int:
        """The elements of a head that are rotated by position."""
        if self.latent is not None:
            return self.latent.rope_dim
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def value_dim(self) -> int:
        """The width of a head's values."""
        return self.head_dim if self.latent is None else self.latent.value_dim

    @property
    def cached_width(self) -> int:
        """The elements that a token's keys and values, or its latent, take in one layer's cache."""
        heads = self.num_kv_heads * (self.head_dim + self.value_dim)
        return heads if self.latent is None else self.latent.cached

    def _check_compression(self, *names: str) -> None:
        context = f"ModelConfig '{self.name}': compression"
        if len(names) != 2:
            raise ValueError(
                f"{context} needs two formats, attention and MLP; got {self.compression}."
            )
        attention, mlp = (parse_format(name) for name in names)
        attention.check(self.d_model, f"{context}: d_model")
        width = "head_dim" if self.latent is None else "value_dim of latents"
        attention.check(self.value_dim, f"{context}: {width}, inputs of a head's output matrix")
        if self.latent is not None:
            for name in ("kv_rank", "q_rank"):
                attention.check(getattr(self.latent, name) or self.d_model, f"{context}: {name}")
            if attention.activation_bits:
                raise ValueError(
                    f"{context}: latent attention also multiplies by transposed matrices, whose "
                    "inputs have a scale each. Use a format that leaves activations, such as int8."
                )
        mlp.check(self.d_model, f"{context}: d_model")
        mlp.check(self.d_ff, f"{context}: d_ff")
        if self.num_experts and mlp.activation_bits:
            raise ValueError(
                f"{context}: experts multiply in the model's dtype. Use int8 instead of w8a8."
            )

    @property
    def item_bytes(self) -> int:
        """The bytes of one parameter or activation."""
        return ITEM_BYTES[self.dtype]

    @property
    def stacked_layers(self) -> int:
        """The number of layers of the stack that stages divide: all but the dense first ones."""
        return self.num_layers - self.dense_layers

    @property
    def of_dense_layers(self) -> "ModelConfig":
        """The model of the dense first layers alone; they have to be there."""
        return self.replace(
            num_layers=self.dense_layers, d_ff=self.dense_d_ff, num_experts=0, shared_experts=0,
            router=None, dense_layers=0, dense_d_ff=0,
        )  # fmt: skip

    @property
    def num_params(self) -> int:
        """The number of parameters, embeddings and norms included."""
        # Imported here: the table of sizes comes from the model, which is made from a config.
        from parallax.models.parameters import end_parameters

        ends = sum(p.size for p in end_parameters(self))
        return self.stacked_layers * self.layer_params + ends

    @property
    def layer_params(self) -> int:
        """The number of parameters of one layer: attention, MLP or experts with router, norms."""
        from parallax.models.parameters import layer_parameters

        return sum(p.size for p in layer_parameters(self))

    def replace(self, **changes) -> "ModelConfig":
        """Return a copy of this config with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain data, as files hold it."""
        return codec.encode(self)

    @classmethod
    def from_dict(cls, data: Any, where: str = "model") -> "ModelConfig":
        """Return the config that `to_dict` encoded. ValueError for missing or wrong fields."""
        return codec.decode(cls, data, where)

    def of_width(self, d_model: int) -> "ModelConfig":
        """Return the model with another width of the residual stream."""
        scale = self.embed_scale and self.embed_scale * (d_model / self.d_model) ** 0.5
        return self.replace(d_model=d_model, embed_scale=scale)

    def small(self, head_dim: int = 8, max_seq_len: int = 80) -> "ModelConfig":
        """Return the model at a width for laptops: layers, heads and ratios stay, head_dim shrinks.

        The vocabulary becomes the 256 byte values, so that any text is a batch of tokens. A head
        no wider than head_dim keeps its width, and widths that do not shrink evenly round up to
        what devices up to 32 divide, if they divide the whole model's.
        Windows shrink to a fifth of max_seq_len, so that they still hide tokens.
        """
        shrink = max(1, self.head_dim // head_dim)
        window = max(1, max_seq_len // 5)
        width = _small_width(self.d_model, shrink)
        heads = min(head_dim, self.head_dim)
        return self.of_width(width).replace(
            name=f"{self.name}.small",
            d_ff=_small_width(self.d_ff, shrink),
            head_dim=heads,
            vocab_size=BYTE_VOCAB,
            max_seq_len=max_seq_len,
            pattern=tuple(
                dataclasses.replace(kind, window=kind.window and min(kind.window, window))
                for kind in self.pattern
            ),
            latent=self.latent and _small_latent(self.latent, heads, shrink),
            rotary_dim=self.rotary_dim and min(self.rotary_dim, _half(heads)),
            dense_d_ff=_small_width(self.dense_d_ff, shrink),
            score_scale=self.score_scale and self.score_scale * (self.head_dim / heads) ** 0.5,
            compression=self.compression and tuple(
                _small_format(name, heads) for name in self.compression
            ),
        )  # fmt: skip


def _small_width(size: int, shrink: int) -> int:
    """Return a width that devices up to 32 divide, if they divide the whole one."""
    unit = math.gcd(size, 32)
    return size and -(-size // shrink // unit) * unit


def _half(head_dim: int) -> int:
    """Return about half of a head's width, in whole pairs."""
    return max(2, 2 * (head_dim // 4))


def _small_format(name: str, inputs: int) -> str:
    """Return the same format with groups of no more inputs than a small head has."""
    group = parse_format(name).group
    if not group or group <= inputs:
        return name
    dtype, plus, runs = name.partition("+")
    return f"{dtype.split('/')[0]}/{inputs}{plus}{runs}"


def _small_latent(latent: LatentAttention, head_dim: int, shrink: int) -> LatentAttention:
    """Return a latent's sizes beside heads of a small width, half of which is rotated."""
    return LatentAttention(
        kv_rank=_small_width(latent.kv_rank, shrink),
        q_rank=latent.q_rank and _small_width(latent.q_rank, shrink),
        rope_dim=min(latent.rope_dim, _half(head_dim)),
        value_dim=min(latent.value_dim, head_dim),
    )


def _one_of(model: str, field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"ModelConfig '{model}': {field} must be one of {', '.join(choices)}; got {value!r}."
        )
