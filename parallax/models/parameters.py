"""The table of a model's parameters, read from the abstract model: the only source of sizes.

A layer's matrices are listed where the layer is defined (`parallax/models/block.py`) and nowhere
else.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parallax.models.config import PARTS, ModelConfig
from parallax.models.layer_kinds import Router
from parallax.rules import Name

FIRST_LAYERS = "first_layers"  # the member of a model that holds its dense first layers, stacked
SHARED = "shared"  # the member of a mixture of experts that every token passes

# Of all layers, on each of 16 or more virtual devices, in float64 and with gradients.
_LAPTOP_PARAMETERS = 1e6
_LAPTOP_LAYERS, _LAPTOP_WIDTH = 4, 64


@dataclass(frozen=True)
class Parameter:
    """One whole parameter of a layer, or of a model's ends (tables, last norm, unembedding).

    Dense first layers are among the ends: each of their parameters is one of all these layers.

    Attributes:
      path: the path in the model's state, such as ("layers", "mlp", "up_DF").
      axes: the logical axis of each dim, or several that split it in turn, without the stack of
        layers.
      shape: the sizes of these dims, for one layer.
      inputs: dims that its product with activations sums over; () if it is no matrix or if it is a
        table, tied or not.
      part: "attention" or "mlp": the format of `ModelConfig.compression` that stores it; None
        leaves it in the model's dtype.
      flops_per_token: FLOPs per token of its product, forward; for experts, of those a token uses.
      wide: it is kept in at least float32, whatever the model's dtype.
    """

    path: tuple[str, ...]
    axes: tuple[Name, ...]
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    part: str | None
    flops_per_token: int
    wide: bool = False

    @property
    def name(self) -> str:
        """The name without the letters of its dims: "up" for up_DF, "shared.up" for shared ones."""
        stem = self.path[-1].split("_")[0]
        return f"{SHARED}.{stem}" if self.is_shared else stem

    @property
    def is_shared(self) -> bool:
        """Whether it is of the experts that every token passes, beside those of its choice."""
        return SHARED in self.path

    @property
    def size(self) -> int:
        """The number of elements, for one layer."""
        return math.prod(self.shape)

    def n_bytes(self, item: int) -> int:
        """Return the bytes for one layer, with `item` per element where it is not wide."""
        return self.size * (max(4, item) if self.wide else item)

    @property
    def input_axes(self) -> tuple[Name, ...]:
        """The logical axes of `inputs`."""
        return tuple(self.axes[i] for i in self.inputs)

    @property
    def reads_stream(self) -> bool:
        """Whether the parameter multiplies rows of the residual stream."""
        return self.input_axes == ("embed",)

    @property
    def count(self) -> int:
        """The number of matrices in the parameter: one per expert."""
        return self.matrices()[2]

    def matrices(self, shape: tuple[int, ...] | None = None) -> tuple[int, int, int]:
        """Return (inputs, outputs, number of matrices) of the parameter, or of a shard's shape."""
        shape = shape or self.shape
        inputs = math.prod(shape[i] for i in self.inputs)
        count = math.prod(n for n, axis in zip(shape, self.axes, strict=True) if axis == "expert")
        return inputs, math.prod(shape) // inputs // count, count


def layer_parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Return every parameter of one layer, in the order of their definitions."""
    return tuple(p for p in model_parameters(config) if p.path[0] == "layers")


def layer_matrices(config: ModelConfig, part: str | None = None) -> tuple[Parameter, ...]:
    """Return the matrices of a layer, or of one part of it, that formats store: no router.

    In each part, those that read the residual stream come first, in the order of the computation.
    """
    wanted = PARTS if part is None else (part,)
    matrices = [p for p in layer_parameters(config) if p.part in wanted]
    return tuple(sorted(matrices, key=lambda p: (PARTS.index(p.part), not p.reads_stream)))


def end_parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Return every parameter outside the stack of layers: tables, dense first layers, the end."""
    return tuple(p for p in model_parameters(config) if p.path[0] != "layers")


def of_laptop_size(
    config: ModelConfig, stages: int, devices: int, expert_parts: int = 1
) -> ModelConfig:
    """Return a model with as many of its layers and experts as a laptop runs on virtual devices.

    Neighbours of one kind in its pattern become one, and of many layers, heads and experts and of a
    wide residual stream few stay, divisible as before; routers still choose, and queries share keys
    as before. MLPs are narrower where the layers have too many parameters.

    Args:
      config: a model of small width.
      stages: stages, with their chunks; each gets whole patterns. Where patterns are left over, one
        is here, and of a part of a pattern at most one layer less than a pattern.
      devices: devices that heads are divided over, as far as they were before.
      expert_parts: parts that the experts are divided into.
    """
    kinds = tuple(kind for kind, _ in itertools.groupby(config.kinds))
    unit, count = stages * len(kinds), len(config.kinds)
    patterns, part = divmod((config.num_layers - config.dense_layers) % (stages * count), count)
    layers = -(-_LAPTOP_LAYERS // unit) * unit
    layers += min(patterns, 1) * len(kinds) + min(part, len(kinds) - 1)
    small = config.of_width(min(config.d_model, _multiple(_LAPTOP_WIDTH, config.d_model)))
    heads, kv_heads = _few_heads(config, devices)
    small = small.replace(
        num_heads=heads,
        num_kv_heads=kv_heads,
        pattern=config.pattern and kinds,
        dense_layers=config.dense_layers // count * len(kinds),
        num_experts=_few_experts(config, expert_parts),
    )
    small = _of_fitting_mlps(small, layers)
    layers += small.dense_layers
    return config if layers >= config.num_layers else small.replace(num_layers=layers)


def _few_heads(config: ModelConfig, devices: int) -> tuple[int, int]:
    """Return the numbers of query and key/value heads, or fewer."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    unit = math.gcd(heads, devices)
    if heads == kv_heads:
        few = min(heads, max(2, unit))
        return few, few
    unit = math.lcm(unit, kv_heads)
    return min(heads, (kv_heads // unit + 1) * unit), kv_heads


def _few_experts(config: ModelConfig, parts: int) -> int:
    """Return the number of experts, or less: twice the choices, of a token's groups too."""
    router = config.router or Router()
    least = -(-2 * config.experts_per_token * router.groups // router.groups_per_token)
    unit = math.lcm(parts, router.groups)
    return min(config.num_experts, -(-least // unit) * unit)


def _multiple(least: int, like: int) -> int:
    """Return a multiple of all powers of two to 64 that divide `like`."""
    unit = math.gcd(like, 64)
    return -(-least // unit) * unit


def _of_fitting_mlps(config: ModelConfig, layers: int) -> ModelConfig:
    """Return a model with MLPs so narrow that as many layers have no more than enough parameters.

    They stay divisible by as many devices.
    """
    unit = math.gcd(config.d_ff, 64)
    mlp = sum(p.size for p in layer_parameters(config) if p.part == "mlp")
    others = sum(p.size for p in layer_parameters(config)) - mlp
    fitting = int((_LAPTOP_PARAMETERS / layers - others) * config.d_ff // mlp)
    return config.replace(d_ff=min(config.d_ff, max(1, fitting // unit) * unit))


def model_parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Return every parameter of a model, those of its layers once.

    Cost: one layer is traced once for all models with equal layers, about 50 ms.
    """
    # Fields that no shape depends on are reset, so that models differing only there share a table.
    layers = 1 + config.dense_layers
    return _read(config.replace(name="", num_layers=layers, dtype="float32", compression=None))


@functools.lru_cache(maxsize=256)
def _read(config: ModelConfig) -> tuple[Parameter, ...]:
    # Imported here: users of a ModelConfig alone need no Flax.
    import jax
    from flax import nnx

    from parallax.models.block import Block
    from parallax.models.transformer import Transformer

    parameters: list[Parameter] = []

    def make():
        rngs = nnx.Rngs(params=0)
        ends = vars(Transformer(config, rngs=rngs)) | {"layers": Block(config, rngs=rngs)}
        parameters.extend(_parameters(ends, config, ()))

    with nnx.use_eager_sharding(False):
        jax.eval_shape(make)
    _check_names(parameters)
    return tuple(parameters)


def _check_names(parameters: list[Parameter]) -> None:
    """Raises ValueError where two matrices of a layer have one name: estimates would mix them."""
    matrices: dict[str, Parameter] = {}
    for parameter in parameters:
        if parameter.path[0] == "layers" and parameter.part is not None:
            other = matrices.setdefault(parameter.name, parameter)
            if other is not parameter:
                raise ValueError(
                    f"Layer: matrices {'.'.join(other.path)} and {'.'.join(parameter.path)} are "
                    f"both called {parameter.name!r}, up to the first underscore. Rename one."
                )


def _parameters(
    members: dict[str, Any], config: ModelConfig, path: tuple[str, ...]
) -> Iterator[Parameter]:
    from flax import nnx

    from parallax.models.weights import WideParam

    for name, value in members.items():
        here = *path, name
        if isinstance(value, nnx.Module):
            yield from _parameters(vars(value), config, here)
        elif isinstance(value, nnx.Param):
            facts, shape = value.get_metadata(), tuple(value.shape)
            axes, inputs = tuple(facts["out_sharding"]), facts.get("inputs", ())
            if here[0] == FIRST_LAYERS:  # after the dim of the stack
                inputs = tuple(1 + dim for dim in inputs)
            multiplied = math.prod(shape) if inputs else 0
            if "expert" in axes:
                multiplied = multiplied // config.num_experts * config.experts_per_token
            yield Parameter(
                here, axes, shape, inputs, facts.get("part"), 2 * multiplied,
                isinstance(value, WideParam),
            )  # fmt: skip
