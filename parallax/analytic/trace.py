"""The ingredients of one device's synthetic trace: its sizes, and its transfers at their places."""

import functools
from collections.abc import Mapping

from parallax.analytic.packed_weights import PackedWeights, device_matrices
from parallax.analytic.places import Place, Placed, placed
from parallax.analytic.sends import one_send
from parallax.bounds import Role
from parallax.hlo.execution_trace import Send, Step
from parallax.kernels.dispatch import is_hopper
from parallax.models.block import attention_shape, heads_read
from parallax.programs.pass_shape import PassShape
from parallax.programs.steps import TransformerStep

_HLO = {"float16": "f16", "bfloat16": "bf16", "float32": "tf32", "float64": "f64"}


class Trace:
    """A step as one device sees it.

    Attributes:
      step: the step. config, strategy, workload, decoder: its own.
      skew: rows of the busiest expert over the mean.
      weights: how a layer's matrices are stored.
      walk: ticks, layers, and sequences per microbatch.
      split: the split that model code sees.
      tokens: tokens per microbatch on one device.
      dtype, item: HLO dtype of the products, and bytes per element.
      heads, kv_heads, head_dim: sizes on one device.
      kernels: kernels that the strategy enables, if the GPU can run them; None otherwise.
      residual: bytes of a microbatch's residual stream on one device.
    """

    def __init__(
        self,
        step: TransformerStep,
        skew: float,
        weights: PackedWeights,
        device_kind: str,
    ):
        config, strategy, workload = step.config, step.strategy, step.sharded.workload
        self.step, self.config, self.strategy, self.workload = step, config, strategy, workload
        self.decoder, self.skew, self.weights = step.decoder, skew, weights.of(config)
        self.walk = PassShape(config, strategy, workload, "gpu", step.decoder)
        self.split, self.item = self.walk.split, config.item_bytes
        self.tokens, self.dtype = self.walk.tokens, _HLO[config.dtype]
        count = self.split.count
        self.heads, self.kv_heads = heads_read(config, self.split)
        self.head_dim = config.head_dim // count("head_dim")
        if config.latent is not None:
            shape = attention_shape(config, self.split, self.walk.b, workload.seq_len, packed=False,
                                    cached=step.decoder is not None)  # fmt: skip
            self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        able = strategy.kernels != "mosaic" or is_hopper(device_kind)
        self.kernels = strategy.kernels if able else None
        self._sizes: dict[str, Mapping[str, tuple[int, int, int]]] = {}
        self.residual = float(self.tokens * config.d_model * self.item)

    @functools.cached_property
    def transfers(self) -> tuple[Placed, ...]:
        """All transfers that send anything, each at its place."""
        ticks, layers = self.walk.ticks, self.walk.layers
        return tuple(
            placed(t, one_send(t, self.strategy.mesh), ticks, layers)
            for t in self.step.of_shard_map() if t.count and t.wire_bytes
        )  # fmt: skip

    def sends(self, *places: Place) -> list[Send]:
        """Return the executions of all transfers at these places, in the order of the program."""
        return [x.send for x in self.transfers if x.place in places for _ in range(x.times)]

    def rings(self) -> list[tuple[list[Send], int]]:
        """Return for each ring the sends of one hop, which run together, and the number of hops."""
        rings: dict[tuple[str, ...], tuple[list[Send], int]] = {}
        for x in self.transfers:
            if x.place == "ring":
                rings.setdefault(x.transfer.axes, ([], x.times))[0].append(x.send)
        return list(rings.values())

    def has(self, *roles: Role) -> bool:
        """Whether any transfer of these roles is sent."""
        return any(x.transfer.role in roles for x in self.transfers)

    def matrices(
        self, part: str, *, reads_stream: bool, shared: bool = False
    ) -> dict[str, tuple[int, int]]:
        """Return the (outputs, inputs) per device of a part's matrices, by name.

        These are the matrices that multiply the residual stream, or those that follow them: of
        attention, of an MLP or of one expert, or of the `shared` experts.
        """
        if part not in self._sizes:
            self._sizes[part] = device_matrices(self.config, self.split, part)
        of = self.weights.matrices
        return {name: (n, k) for name, (k, n, _) in self._sizes[part].items()
                if (of[name].reads_stream, of[name].is_shared) == (reads_stream, shared)
                }  # fmt: skip

    def products_behind(self, part: str, *, shared: bool = False) -> list[Step]:
        """Trace the products of a part that follow those reading the residual stream."""
        behind = self.matrices(part, reads_stream=False, shared=shared)
        return [step for name, size in behind.items() for step in self.product(name, *size)]

    def product(self, name: str, n: float, k: float) -> list[Step]:
        """Trace the product of a microbatch's tokens with a matrix [k, n], as it is stored."""
        found = self.by_kernel(name, int(self.tokens), int(n), int(k))
        if found:
            return found
        product = self.weights.multiplied(name, self.tokens, n, k, self.dtype, self.item)
        return [*self.weights.unpacked(name, n, k, self.item), *product]

    def by_kernel(
        self, name: str, m: int, n: int, k: int, count: int = 1, *, picked: bool = False
    ) -> list[Step]:
        """Trace a decoding step's products by our kernel; [] where it does not run."""
        if self.kernels != "mosaic" or self.decoder is None:
            return []
        args = self.config.dtype, self.item, count, picked
        return self.weights.by_kernel(name, m, n, k, *args)

    def overlaps(self) -> bool:
        """Whether a handoff overlaps the layers; where they hold sums, XLA makes it wait."""
        lag = getattr(self.strategy.layers, "lag", lambda microbatches, stages: 1)
        stages = self.split.count("layers")
        return lag(self.walk.useful, stages) > 1 and not self.sums()

    def sums(self) -> bool:
        """Whether partial products are summed over devices."""
        return self.has("attention_sum", "mlp_sum")
