"""Mixed-precision assignment of formats to layers under a budget, by a proxy that runs no text.

The proxy is the sum over matrices of the squared relative L2 error of the stored weights. It sees
weights but no activations, and weighs all matrices equally. `parallax compress_quality` measures
what an assignment costs a model.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx

from parallax.compression import parse_format
from parallax.compression.errors import weight_error
from parallax.compression.mixing import Choice, assign_mix
from parallax.engine.layer_formats import Formats
from parallax.meshes.sizes import parse_bytes
from parallax.models.compressing import layer_config
from parallax.models.config import PARTS, ModelConfig
from parallax.models.parameters import layer_matrices
from parallax.placement.footprint import part_bytes

# The choices beside the model's own dtype and that dtype with 2:4, where sizes allow them.
_FORMATS = ("int8", "int8+2:4", "int4", "int4/32", "int4+2:4", "int4/32+2:4")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)x")


@dataclass(frozen=True)
class MildestFormats:
    """A mixed-precision assignment with its predicted damage.

    Attributes:
      formats: those of every layer's attention and MLP.
      damages: predicted for every layer: the sum of squared relative errors of its weights.
      n_bytes: bytes of all layers' matrices.
      budget_bytes: the budget for these bytes.
    """

    formats: tuple[Formats, ...]
    damages: tuple[float, ...]
    n_bytes: int
    budget_bytes: int


def assign_formats(
    config: ModelConfig,
    layers: nnx.State,
    budget: int | str,
    formats: Sequence[str] | None = None,
    *,
    on_progress: Callable[[str], None] = lambda line: None,
) -> MildestFormats:
    """Choose the formats of every layer that do the least predicted damage under a budget.

    The choice is optimal if damages add up, which is an assumption.

    Args:
      config: the model, without `compression`.
      layers: its layers' dense parameters, stacked.
      budget: bytes of all layers' matrices, such as "40MB" or a number, or a share of their dense
        bytes, such as "0.3x".
      formats: the choices, where sizes allow them; None takes the model's dtype, that dtype with
        2:4, and int8 and int4 with and without 2:4.
      on_progress: called with a line whenever something starts.

    Raises:
      ValueError: the budget is invalid, or below the bytes of the smallest formats.

    Cost: every matrix is compressed once in every format.
    """
    names = formats or (config.dtype, f"{config.dtype}+2:4", *_FORMATS)
    whole = config.num_layers * sum(part_bytes(config, p, config.dtype) for p in PARTS)
    n_bytes = _budget_bytes(budget, whole)
    allowed = {part: [name for name in names if _fits(config, part, name)] for part in PARTS}
    on_progress(f"weights' errors of {config.num_layers} layers in {len(names)} formats")
    flat: dict[Any, Any] = {
        ("layers", *path): x.get_value() for path, x in nnx.to_flat_state(layers)
    }

    def damage(layer: int, part: str, name: str) -> float:
        if name == config.dtype:
            return 0.0
        form = parse_format(name)
        mine = sorted(layer_matrices(config, part), key=lambda m: m.path)
        return sum(float(weight_error(flat[m.path][layer], form, m.inputs)) ** 2 for m in mine)

    slots = [
        [Choice(name, part_bytes(config, part, name), damage(layer, part, name))
         for name in allowed[part]]
        for layer in range(config.num_layers) for part in PARTS
    ]  # fmt: skip
    mix = assign_mix(slots, n_bytes)
    chosen = [
        next(c.damage for c in slot if c.name == name)
        for slot, name in zip(slots, mix.names, strict=True)
    ]
    return MildestFormats(
        tuple(zip(mix.names[::2], mix.names[1::2], strict=True)),
        tuple(a + m for a, m in zip(chosen[::2], chosen[1::2], strict=True)),
        mix.n_bytes, n_bytes,
    )  # fmt: skip


def _fits(config: ModelConfig, part: str, name: str) -> bool:
    dense = config.dtype
    try:
        layer_config(config, (name, dense) if part == "attention" else (dense, name))
    except ValueError:
        parse_format(name)  # raises for an unknown format
        return False
    return True


def _budget_bytes(budget: int | str, whole: int) -> int:
    if isinstance(budget, int):
        return budget
    if share := _SHARE.fullmatch(budget):
        return int(float(share[1]) * whole)
    try:
        return parse_bytes(budget)
    except ValueError:
        raise ValueError(
            f"budget {budget!r}: expected a share of the matrices' dense bytes such as 0.3x, or "
            "bytes such as 40MB."
        ) from None
