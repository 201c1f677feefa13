"""The sums of gradients over devices, and the layout of the optimizer's state that they end in."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from flax import nnx
from jax import lax

from parallax.models.parameters import FIRST_LAYERS
from parallax.parallel.attention_part import size_over
from parallax.parallel.sharded_weights import gather_shards
from parallax.parallel.split import Split
from parallax.parallel.varying import vary_over
from parallax.programs.parameters import ShardedParameters
from parallax.rules import Name, embed_axes, embed_dim
from parallax.strategy import Strategy

# The logical axes over which devices use a parameter for different work. Its gradient is summed
# over them once, at the end of the backward pass.
TOKENS = ("act_batch", "act_seq")
_DIFFERENT_WORK = {
    "tokens_VD": (*TOKENS, "act_norm_seq", "layers"),
    "positions_LD": (*TOKENS, "act_norm_seq", "layers"),
    "attention": (*TOKENS, "heads", "head_dim"),
    "mlp": (*TOKENS, "mlp", "expert"),
    "choice_bias_E": (),  # its gradient is zero everywhere
    # The bias of a sum over devices is added once, after that sum.
    "out_bias_D": (*TOKENS, "act_norm_seq"),
    "down_bias_D": (*TOKENS, "act_norm_seq"),
    "attention_norm": (*TOKENS, "act_norm_seq"),
    "mlp_norm": (*TOKENS, "act_norm_seq"),
    "attention_post_norm": (*TOKENS, "act_norm_seq"),
    "mlp_post_norm": (*TOKENS, "act_norm_seq"),
    "final_norm": (*TOKENS, "act_norm_seq"),
    "unembed_DV": TOKENS,
}


class GradientSum(NamedTuple):
    """How the gradient of one parameter is summed over devices.

    Attributes:
      scattered: mesh axes over which it is reduce-scattered, major first.
      summed: mesh axes over which it is then all-reduced.
    """

    scattered: tuple[str, ...]
    summed: tuple[str, ...]


def sum_gradients(grads: nnx.State, strategy: Strategy, split: Split) -> nnx.State:
    """Sum this device's gradients with those of devices that did different work.

    Args:
      grads: gradients of the parameters that `ShardedParameters.entered` returned.
      strategy, split: the strategy, and its own view of the training phase.

    Returns:
      Gradients laid out as `optimizer_specs`. Those that end up sharded are reduce-scattered.

    Cost: `gradient_sums`.
    """

    def sum_one(path, g):
        how = _gradient_sum(path, g.out_sharding, strategy, split)
        value = g[...]
        if how.scattered:
            dim = embed_dim(g.out_sharding)
            assert dim is not None
            value = vary_over(value, how.scattered)
            value = lax.psum_scatter(value, how.scattered, scatter_dimension=dim, tiled=True)
        if how.summed:
            value = lax.psum(vary_over(value, how.summed), how.summed)
        return g.replace(value)

    return nnx.map_state(sum_one, grads)


def gather_parameters(params: nnx.State, strategy: Strategy) -> nnx.State:
    """All-gather parameters laid out as the optimizer's state into their own layout."""

    def gather(w):
        axes, dim = _further(w.out_sharding, strategy), embed_dim(w.out_sharding)
        return w if dim is None or not axes else w.replace(gather_shards(w[...], axes, dim, ()))

    return nnx.map_state(lambda _, w: gather(w), params)


def gradient_sums(
    sharded: ShardedParameters,
) -> dict[tuple[Literal["sum", "scatter"], tuple[str, ...]], int]:
    """Return the elements per device that sums of gradients start from.

    Returns:
      ("sum" for an all-reduce, "scatter" for a reduce-scatter; mesh axes) -> elements.
    """
    split = sharded.strategy.split("train")
    sums: dict[tuple[Literal["sum", "scatter"], tuple[str, ...]], int] = {}
    for path, w in nnx.to_flat_state(sharded.shapes):
        how = _gradient_sum(path, w.out_sharding, sharded.strategy, split)
        held = w.size // shards_of(w.out_sharding, sharded.strategy)
        if how.scattered:
            key = "scatter", how.scattered
            sums[key] = sums.get(key, 0) + held * size_over(split.mesh_axes, how.scattered)
        if how.summed:
            sums["sum", how.summed] = sums.get(("sum", how.summed), 0) + held
    return sums


def gathered_parameters(sharded: ShardedParameters) -> dict[tuple[str, ...], int]:
    """Return the elements per device that `gather_parameters` ends with, by mesh axes."""
    found: dict[tuple[str, ...], int] = {}
    for _, w in nnx.to_flat_state(sharded.shapes):
        axes = _further(w.out_sharding, sharded.strategy)
        if axes:
            held = w.size // shards_of(w.out_sharding, sharded.strategy)
            found[axes] = found.get(axes, 0) + held * size_over(sharded.strategy.mesh_axes, axes)
    return found


def shards_of(names: Sequence[Name], strategy: Strategy) -> int:
    """Return the number of shards of a parameter's optimizer state."""
    spec = strategy.rules.spec(names, "optimizer")
    return math.prod(strategy.mesh_axes[a] for axes in spec for a in axes)


def vary_by_work(state: nnx.State, split: Split) -> nnx.State:
    """Type parameters as varying over the mesh axes over which devices use them differently.

    Then a device adds up its own gradients over layers and microbatches, and devices sum them once.
    """
    return nnx.map_state(
        lambda path, w: w.replace(vary_over(w[...], different_work(path, split))), state
    )


def _further(names: Sequence[Name], strategy: Strategy) -> tuple[str, ...]:
    """Return the mesh axes over which optimizer state is sharded and its parameter is not."""
    held, state = (embed_axes(names, strategy.rules.table(p)) for p in ("train", "optimizer"))
    return state[len(held) :]


def _gradient_sum(path, names: Sequence[Name], strategy: Strategy, split: Split) -> GradientSum:
    rules = strategy.rules
    # Layers that gather their weights reduce-scatter the gradients themselves.
    gathered = embed_axes(names, rules.table("train")) if strategy.gather == "step" else ()
    scattered = (*gathered, *_further(names, strategy))
    own = {a for axes in rules.spec(names, "train") for a in axes}
    different = set(different_work(path, split)) - own - set(scattered)
    return GradientSum(scattered, tuple(a for a in split.mesh_axes if a in different))


def different_work(path, split: Split) -> tuple[str, ...]:
    """Return the mesh axes over which devices use the parameter at a path for different work."""
    name = next((name for name in reversed(path) if name in _DIFFERENT_WORK), None)
    if name is None:
        raise LookupError(
            f"parameter {'.'.join(map(str, path))}: over which devices its gradient is summed is "
            f"not known; known are {', '.join(_DIFFERENT_WORK)}. Add it to _DIFFERENT_WORK in "
            "parallax/programs/gradient_sums.py."
        )
    # Gradients of the dense first layers, as of tables, come from the first stage alone.
    stages = ("layers",) if FIRST_LAYERS in path else ()
    return split.over(*_DIFFERENT_WORK[name], *stages)
