"""What one device's sketch is drawn from: its sizes, its transfers, how often each is sent."""

import functools

from parallax.bounds import Transfer
from parallax.communication import Walk
from parallax.estimate.packed_weights import PackedWeights
from parallax.estimate.sends import one_send
from parallax.hlo.work import Send, Step
from parallax.kernels.dispatch import is_hopper
from parallax.steps import TransformerStep

_HLO = {"float16": "f16", "bfloat16": "bf16", "float32": "tf32", "float64": "f64"}


class Sketch:
    """A step as a device sees it.

    Attributes:
      config, strategy, workload, decoder: of the program.
      skew: rows of the busiest expert over the mean.
      weights: how a layer's matrices are stored. device_kind: what JAX calls the GPU.
      walk: ticks, layers and sequences of a microbatch.
      split: what model code sees.
      tokens: of a microbatch on a device; dtype, item: of its products, and bytes of one element.
      heads, kv_heads, head_dim: of a device.
      kernels: that the strategy asks for, if such a GPU has them.
      residual: bytes of a microbatch's residual stream.
      transfers: of the whole program, those that send something.
    """

    def __init__(
        self,
        step: TransformerStep,
        skew: float,
        weights: PackedWeights,
        device_kind: str,
    ):
        self.config, self.strategy, self.workload = config, strategy, workload = (
            step.config, step.strategy, step.sharded.workload,
        )  # fmt: skip
        self.decoder, self.skew, self.weights = step.decoder, skew, weights
        self.walk = Walk(config, strategy, workload, "gpu", step.decoder)
        self.split, self.item = self.walk.split, config.item_bytes
        self.tokens, self.dtype = self.walk.tokens, _HLO[config.dtype]
        count = self.split.count
        self.heads = config.num_heads // count("heads")
        self.kv_heads = max(1, config.num_kv_heads // count("kv_heads"))
        self.head_dim = config.head_dim // count("head_dim")
        able = strategy.kernels != "mosaic" or is_hopper(device_kind)
        self.kernels = strategy.kernels if able else None
        self.residual = float(self.tokens * config.d_model * self.item)
        self.transfers = [t for t in step.of_shard_map() if t.count and t.wire_bytes]

    @functools.cached_property
    def rare(self) -> list[tuple[Transfer, float]]:
        """Transfers of a tick, and how often in it."""
        return [(t, t.count / self.walk.ticks) for t in self.transfers if not self._of_layer(t)]

    def of_layer(self, *starts: str) -> list[tuple[Transfer, float]]:
        """Transfers of a layer whose names start so, and how often in it."""
        each = self.walk.ticks * self.walk.layers
        return [(t, t.count / each) for t in self.transfers
                if self._of_layer(t) and t.what.startswith(starts)]  # fmt: skip

    def _of_layer(self, t: Transfer) -> bool:
        each = self.walk.ticks * self.walk.layers
        return t.count >= each and not t.count % each and (
            self.walk.layers > 1 or not t.what.startswith(("widen", "stage", "last"))
        )  # fmt: skip

    def sends(self, found: list[tuple[Transfer, float]]) -> list[Send]:
        """Their executions; what is sent less than once counts as once."""
        steps: list[Send] = []
        for t, times in found:
            send = one_send(t, self.strategy.mesh, t.what)
            whole = int(times)
            steps += [send] * whole
            if times > whole and not whole:
                steps.append(send)
        return steps

    def product(self, name: str, n: float, k: float) -> list[Step]:
        """All tokens of the microbatch times a matrix [k, n], as it is stored."""
        product = self.weights.multiplied(name, self.tokens, n, k, self.dtype, self.item)
        return [*self.weights.unpacked(name, n, k, self.item), *product]

    def overlaps(self) -> bool:
        """Whether a handoff travels beside the layers; XLA makes it wait for sums in them."""
        lag = getattr(self.strategy.layers, "lag", lambda microbatches, stages: 1)
        stages = self.split.count("layers")
        return lag(self.walk.useful, stages) > 1 and not self.sums()

    def asks(self) -> bool:
        """Whether a decoding step's queries travel to the cache."""
        return bool(self.of_layer("queries", "keys", "values", "new"))

    def sums(self) -> bool:
        """Whether partial products are summed over devices."""
        return bool(self.of_layer("sum of"))
