"""The configuration of a transformer: sizes and choices, as one frozen value."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from parallax import codec
from parallax.compression import parse_format

Mlp = Literal["gelu", "gated"]
Norm = Literal["rmsnorm", "layernorm"]
Positions = Literal["rope", "learned", "none"]
DType = Literal["float16", "bfloat16", "float32", "float64"]

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
BYTE_VOCAB = 256
PARTS = ("attention", "mlp")  # the parts of a layer, in the order of `ModelConfig.compression`


@dataclass(frozen=True)
class RopeScaling:
    """The scaling of rotary frequencies for texts longer than those of a model's first training.

    Attributes:
      kind: "linear" divides all frequencies by `factor`; "llama3" divides the slow ones, leaves the
        fast ones unchanged, and interpolates in between.
      factor: at least 1.
      low_freq_factor, high_freq_factor: for "llama3": a pair that makes fewer turns than the first
        in original_max_seq_len tokens is slow, one that makes more than the second is fast.
      original_max_seq_len: for "llama3": the sequence length of the first training, tokens.

    Reference: Chen et al., "Extending Context Window via Position Interpolation", 2023 (linear);
      Grattafiori et al., "The Llama 3 Herd of Models", 2024 (llama3).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"RopeScaling: kind must be linear or llama3; got {self.kind!r}.")
        if self.factor < 1 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "RopeScaling: factor must be at least 1, and low_freq_factor between 0 and "
                f"high_freq_factor; got {self}."
            )


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
      mlp: "gelu" (two matrices) or "gated" (three matrices, SiLU gate).
      norm: "rmsnorm" or "layernorm"; computed in float32 or wider.
      positions: "rope", "learned" (a table of max_seq_len rows) or "none".
      causal: a token sees itself and earlier tokens; otherwise all tokens.
      dtype: dtype of parameters and activations.
      max_seq_len: rows of the learned position table, tokens.
      num_experts: MLPs per layer, each of width d_ff; 0 is one MLP without a router.
      experts_per_token: MLPs that each token passes through (top-k).
      load_balance: weight of the routers' load-balancing loss, summed over layers.
      qk_norm: RMSNorm of every query and key head over head_dim, before positions.
      bias: all matrices of attention and MLP add a bias; not with experts.
      tie_embeddings: the unembedding is the transposed token table, the same parameter.
      rope_theta: base of the rotary frequencies.
      rope_scaling: scaling for positions="rope"; None leaves the frequencies unchanged.
      norm_epsilon: added to a norm's variance.
      compression: formats in which the matrices of attention and of the MLP (all experts) are
        stored, as `parallax.compression.parse_format` reads them; None is `dtype`. Norms, biases,
        routers and tables stay in `dtype`. A compressed model computes another function.
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

    def __post_init__(self):
        if self.compression is not None:
            object.__setattr__(self, "compression", tuple(self.compression))
            self._check_compression(*self.compression)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "num_experts" else 1
            if field.type is int and (not isinstance(value, int) or value < least):
                raise ValueError(
                    f"ModelConfig '{self.name}': {field.name} must be an integer of at least "
                    f"{least}, got {value!r}."
                )
        for name, choices in (("mlp", Mlp), ("norm", Norm), ("positions", Positions)):
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
        if self.bias and self.num_experts:
            raise ValueError(
                f"ModelConfig '{self.name}': experts with biases are not supported. Use bias=False."
            )
        if self.rope_scaling is not None and self.positions != "rope":
            raise ValueError(
                f"ModelConfig '{self.name}': rope_scaling needs positions='rope', got "
                f"{self.positions!r}. Leave out one of them."
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(
                f"ModelConfig '{self.name}': RoPE rotates pairs, head_dim={self.head_dim} is odd. "
                "Use an even head_dim, or positions='learned' or 'none'."
            )

    def _check_compression(self, *names: str) -> None:
        context = f"ModelConfig '{self.name}': compression"
        if len(names) != 2:
            raise ValueError(
                f"{context} needs two formats, attention and MLP; got {self.compression}."
            )
        attention, mlp = (parse_format(name) for name in names)
        attention.check(self.d_model, f"{context}: d_model")
        attention.check(self.head_dim, f"{context}: head_dim, inputs of a head's output matrix")
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
    def num_params(self) -> int:
        """The number of parameters, embeddings and norms included."""
        # Imported here: the table of sizes comes from the model, which is made from a config.
        from parallax.models.parameters import end_parameters

        ends = sum(p.size for p in end_parameters(self))
        return self.num_layers * self.layer_params + ends

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

    def small(self, head_dim: int = 8, max_seq_len: int = 80) -> "ModelConfig":
        """Return the model at a width for laptops: layers, heads and ratios stay, head_dim shrinks.

        The vocabulary becomes the 256 byte values, so that any text is a batch of tokens. A head
        no wider than head_dim keeps its width, and widths that do not shrink evenly round up.
        """
        shrink = max(1, self.head_dim // head_dim)
        return self.replace(
            name=f"{self.name}.small",
            d_model=-(-self.d_model // shrink),
            d_ff=-(-self.d_ff // shrink),
            head_dim=min(head_dim, self.head_dim),
            vocab_size=BYTE_VOCAB,
            max_seq_len=max_seq_len,
            compression=self.compression and tuple(
                _small_format(name, min(head_dim, self.head_dim)) for name in self.compression
            ),
        )  # fmt: skip


def _small_format(name: str, inputs: int) -> str:
    """Return the same format with groups of no more inputs than a small head has."""
    group = parse_format(name).group
    if not group or group <= inputs:
        return name
    dtype, plus, runs = name.partition("+")
    return f"{dtype.split('/')[0]}/{inputs}{plus}{runs}"


def _one_of(model: str, field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"ModelConfig '{model}': {field} must be one of {', '.join(choices)}; got {value!r}."
        )
