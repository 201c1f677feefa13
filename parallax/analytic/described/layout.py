"""How a training step is split over devices and into microbatches, in the words people use."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from parallax.meshes.cluster import Cluster
from parallax.models.config import ModelConfig

Recompute = Literal["none", "selective", "layer"]
_ZERO = (0, 1, 2, 3)


class Group(NamedTuple):
    """The devices of a collective: so many inside each of so many nodes."""

    inside: int
    nodes: int

    @property
    def size(self) -> int:
        return self.inside * self.nodes


@dataclass(frozen=True)
class Layout:
    """How a step is split and batched.

    Devices count with tensor innermost, then context, data and pipeline, as Megatron and nanotron
    number their ranks. A step has data * microbatch * microbatches sequences.

    Attributes:
      data, tensor, pipeline, context: degrees; their product is the number of devices.
      expert: devices over which a layer's experts are split, of the data, context and tensor
        ranks; 1 splits experts as `tensor` splits a dense MLP.
      microbatch: sequences per microbatch on one data rank.
      microbatches: microbatches per step and data rank.
      zero: what data ranks shard: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too.
      sequence_parallel: tensor ranks split the tokens where they do not split heads or widths.
      recompute: what the backward pass computes again: "none", "selective" (attention's scores,
        which fused kernels never keep) or "layer".
      interleaved: chunks of layers per pipeline stage.
    """

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    microbatch: int = 1
    microbatches: int = 1
    zero: int = 0
    sequence_parallel: bool = True
    recompute: Recompute = "none"
    interleaved: int = 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (
                type(value) is not int or value < (0 if field.name == "zero" else 1)
            ):
                raise ValueError(f"Layout: {field.name} must be a positive integer, got {value!r}.")
        if self.zero not in _ZERO:
            raise ValueError(f"Layout: zero must be one of {_ZERO}, got {self.zero}.")
        if self.recompute not in get_args(Recompute):
            raise ValueError(
                f"Layout: recompute must be one of {', '.join(get_args(Recompute))}; got "
                f"{self.recompute!r}."
            )
        if self.replicas * self.tensor % self.expert:
            raise ValueError(
                f"Layout: expert={self.expert} does not divide data * context * tensor = "
                f"{self.replicas * self.tensor}, the devices that share a stage's experts."
            )
        if self.interleaved > 1 and self.pipeline == 1:
            raise ValueError("Layout: interleaved chunks need pipeline > 1.")

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def forwards(self) -> int:
        """Forward passes of a layer per microbatch: two if the backward pass repeats it."""
        return 2 if self.recompute == "layer" else 1

    @property
    def replicas(self) -> int:
        """The devices with the same dense weights, over which gradients are summed."""
        return self.data * self.context

    @property
    def expert_replicas(self) -> int:
        """The devices with the same experts."""
        if self.expert == 1:
            return self.replicas
        return self.replicas * self.tensor // self.expert

    @property
    def degrees(self) -> str:
        """The degrees above 1, as a split is written."""
        names = ("data", "tensor", "pipeline", "context", "expert")
        found = (f"{name}={n}" for name in names if (n := getattr(self, name)) > 1)
        return ",".join(found) or "one device"

    @property
    def sequences(self) -> int:
        """The sequences of a step."""
        return self.data * self.microbatch * self.microbatches

    def group(self, size: int, stride: int, cluster: Cluster) -> Group:
        """Return the devices of a group of `size` ranks, `stride` devices apart."""
        inside = min(size, max(1, cluster.gpus_per_node // stride))
        return Group(inside, -(-size // inside))

    def between_nodes(self, stage: int, cluster: Cluster) -> bool:
        """Whether a stage of the pipeline sends to the next one over the network."""
        each, per_node = self.devices // self.pipeline, cluster.gpus_per_node
        return stage * each // per_node != (stage + 1) * each // per_node

    def check(self, config: ModelConfig, seq_len: int, cluster: Cluster) -> None:
        """Raise ValueError unless a model, its sequences and a cluster can be split so."""
        rules = {
            f"heads ({config.num_heads}) are a multiple of tensor": (
                config.num_heads % self.tensor == 0
            ),
            f"d_ff ({config.d_ff}) is a multiple of tensor": (
                config.d_ff % self.tensor == 0 or (config.num_experts > 0 and self.expert > 1)
            ),
            f"experts ({config.num_experts}) are a multiple of expert": self.expert == 1
            or (config.num_experts > 0 and config.num_experts % self.expert == 0),
            f"layers ({config.num_layers}) are at least pipeline": (
                config.num_layers >= self.pipeline * self.interleaved
            ),
            f"seq_len ({seq_len}) is a multiple of context": (
                seq_len >= 1 and seq_len % self.context == 0
            ),
            f"devices ({self.devices}) are those of cluster {cluster.name!r} ({cluster.devices})": (
                self.devices == cluster.devices
            ),
        }  # fmt: skip
        if broken := [rule for rule, holds in rules.items() if not holds]:
            raise ValueError(
                f"Layout of {config.name!r}: expected that {'; that '.join(broken)}; got "
                f"{self.degrees}. Change the split, or the cluster."
            )
