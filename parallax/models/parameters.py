"""The table of a model's parameters, read off the abstract model: everyone who counts asks it.

A layer's matrices are listed where the layer is made (`parallax/models/block.py`) and nowhere else.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parallax.models.config import PARTS, ModelConfig


@dataclass(frozen=True)
class Parameter:
    """One parameter of a layer or of a model's ends, whole.

    Attributes:
      path: in the model's state, such as ("layers", "mlp", "up_DF").
      axes: logical axis of each dim, without the stack of layers.
      shape: sizes of these dims, of one layer.
      inputs: dims that its product with activations sums over; () where it is not a matrix, and of
        a table, tied or not.
      part: "attention" or "mlp": which format of `ModelConfig.compression` stores it; None leaves
        it in the model's dtype.
      flops_per_token: of its product, forward; of experts' matrices those that a token passes.
    """

    path: tuple[str, ...]
    axes: tuple[str | None, ...]
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    part: str | None
    flops_per_token: int

    @property
    def name(self) -> str:
        """Its name without letters for dims: "up" of up_DF."""
        return self.path[-1].split("_")[0]

    @property
    def size(self) -> int:
        """Elements of one layer's."""
        return math.prod(self.shape)

    @property
    def input_axes(self) -> tuple[str | None, ...]:
        """Logical axes of `inputs`."""
        return tuple(self.axes[i] for i in self.inputs)

    @property
    def reads_stream(self) -> bool:
        """Whether it multiplies rows of the residual stream."""
        return self.input_axes == ("embed",)

    @property
    def count(self) -> int:
        """Matrices side by side: one of each expert."""
        return self.matrices()[2]

    def matrices(self, shape: tuple[int, ...] | None = None) -> tuple[int, int, int]:
        """(inputs, outputs, how many) of the whole parameter, or of a device's share of it."""
        shape = shape or self.shape
        inputs = math.prod(shape[i] for i in self.inputs)
        count = math.prod(n for n, axis in zip(shape, self.axes, strict=True) if axis == "expert")
        return inputs, math.prod(shape) // inputs // count, count


def layer_parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter of one layer, in the order in which the layer declares them."""
    return tuple(p for p in model_parameters(config) if p.path[0] == "layers")


def layer_matrices(config: ModelConfig, part: str | None = None) -> tuple[Parameter, ...]:
    """The matrices of a layer, or of one part of it, that formats store: no router.

    Of a part those that read the residual stream come first, as a token meets them.
    """
    wanted = PARTS if part is None else (part,)
    found = [p for p in layer_parameters(config) if p.part in wanted]
    return tuple(sorted(found, key=lambda p: (PARTS.index(p.part), not p.reads_stream)))


def end_parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter outside the layers: tables, the last norm, the unembedding."""
    return tuple(p for p in model_parameters(config) if p.path[0] != "layers")


def model_parameters(config: ModelConfig) -> tuple[Parameter, ...]:
    """Every parameter of a model, those of its layers once.

    Cost: a layer is traced once for all models whose layers are alike, some 50 ms.
    """
    # What no shape depends on is left out, so that models that differ in it share one table.
    return _read(config.replace(name="", num_layers=1, dtype="float32", compression=None))


@functools.lru_cache(maxsize=256)
def _read(config: ModelConfig) -> tuple[Parameter, ...]:
    # Loaded here: who holds a ModelConfig needs no Flax.
    import jax
    from flax import nnx

    from parallax.models.block import Block
    from parallax.models.transformer import Transformer

    found: list[Parameter] = []

    def make():
        rngs = nnx.Rngs(params=0)
        ends = vars(Transformer(config, rngs=rngs)) | {"layers": Block(config, rngs=rngs)}
        found.extend(_parameters(ends, config, ()))

    with nnx.use_eager_sharding(False):
        jax.eval_shape(make)
    _check_names(found)
    return tuple(found)


def _check_names(found: list[Parameter]) -> None:
    """Raises ValueError where two matrices of a layer have one name: estimates would mix them."""
    matrices: dict[str, Parameter] = {}
    for parameter in found:
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

    for name, value in members.items():
        here = *path, name
        if isinstance(value, nnx.Module):
            yield from _parameters(vars(value), config, here)
        elif isinstance(value, nnx.Param):
            facts, shape = value.get_metadata(), tuple(value.shape)
            axes, inputs = tuple(facts["out_sharding"]), facts.get("inputs", ())
            multiplied = math.prod(shape) if inputs else 0
            if "expert" in axes:
                multiplied = multiplied // config.num_experts * config.experts_per_token
            yield Parameter(here, axes, shape, inputs, facts.get("part"), 2 * multiplied)
