"""The closed form of the bytes that a training step sends.

It follows `ShardedTransformer.gradients` and the optimizer's update: forward and backward passes of
each microbatch, what they recompute, the sums of gradients, and parameters gathered after an update
that was sharded further than they are.
"""

import dataclasses
from collections.abc import Iterable

from parallax.bounds import Role, Transfer
from parallax.models.config import ModelConfig
from parallax.parallel.experts import Platform
from parallax.parallel.remat import Remat
from parallax.programs.first_layers import add_first_layers, first_layers
from parallax.programs.gradient_sums import gathered_parameters, gradient_sums
from parallax.programs.pass_shape import PassShape
from parallax.programs.schedule_branches import training_runs
from parallax.strategy import Strategy
from parallax.workload import Workload

_SCATTER = "scatter gradients of sharded weights"


def train_transfers(
    config: ModelConfig,
    strategy: Strategy,
    workload: Workload,
    remat: Remat = "layer",
    param_bytes: int = 4,
    *,
    platform: Platform = "gpu",
) -> tuple[Transfer, ...]:
    """Return the transfers of one training step: forward, recomputed, backward, gradient sums.

    Args:
      config, strategy, workload, platform: as in `forward_transfers`.
      remat: what the backward pass of each layer recomputes.
      param_bytes: bytes per parameter, and per gradient, as the optimizer keeps them.

    Returns:
      One Transfer per purpose. `minimum_bytes` counts one forward pass and one backward pass
      without bubbles: what rematerialisation sends again does not count.
    """
    shape = PassShape(config, strategy, workload, platform)
    shape.step_weights()
    balanced = config.num_experts and config.load_balance
    if balanced and workload.microbatches > 1:
        shape.stack()
        add_first_layers(shape)
        shape.transfers = [dataclasses.replace(t, minimum_bytes=0.0) for t in shape.transfers]
    if (runs := training_runs(shape.sharded)) is not None:
        shape.run_as(runs)
    shape.stack(remat)
    if (first := first_layers(shape)) is not None:
        add_first_layers_training(shape, first, remat)
    with shape.running(shape.runs.ends):
        shape.add("unembedding_gather", "gather after the last layer", "all-gather",
                  shape.over("act_norm_seq"), shape.residual * shape.item)  # fmt: skip
        shape.end(shape.residual * shape.item / shape.split.count("act_norm_seq"))
        shape.end_weights(param_bytes, every_position=True)
        _cross_entropy(shape)
        _ends_backward(shape, param_bytes)
    with shape.running(shape.runs.backward):
        _layers_backward(shape)
    if balanced:
        _routers(shape)
    _gradients(shape, param_bytes)
    return tuple(shape.transfers)


def add_first_layers_training(shape: PassShape, first: PassShape, remat: Remat) -> None:
    """Add the dense first layers, forward and backward, at the place of the embedding.

    Where stages run a schedule, the gradient of the embedding runs these layers again.
    """
    again = bool(shape.over("layers"))
    whole, ends = shape.residual * shape.item, shape.runs.ends
    first.of_layers(remat)
    if again:
        first.of_layers()
    widths = ends * (1 + again)
    with shape.running(ends):
        of_layers_backward(first)
        shape.add("lookup", "widen the gradient of the dense first layers", "all-gather",
                  shape.over("lookup"), whole)  # fmt: skip
        if again:
            shape.rows_of_tables()
    with shape.running(widths):
        shape.add("lookup", "widen embeddings for the dense first layers", "all-gather",
                  shape.over("lookup"), whole)  # fmt: skip
    shape.transfers += first.transfers


def _layers_backward(shape: PassShape) -> None:
    """Add the backward pass through the layers and handoffs."""
    of_layers_backward(shape)
    whole, stage = shape.residual * shape.item, shape.over("layers")
    handoff = whole // shape.split.count("lookup") // shape.split.count("act_norm_seq")
    role: Role = "stage_handoff_gradient"
    with shape.running(shape.runs.sends_back):
        shape.add(role, "gradient of stage handoff", "collective-permute", stage, handoff)
    if stage:
        shape.add(role, "widen the handoff's gradient", "all-gather", shape.over("lookup"), whole)


def of_layers_backward(shape: PassShape) -> None:
    """Add the backward pass through the layers."""
    whole, norm_seq = shape.residual * shape.item, shape.over("act_norm_seq")
    shape.parts("backward_transfers")
    for part in shape.parts_summed():
        kind = "all-reduce"
        if norm_seq and norm_seq == part.axes:
            kind = "reduce-scatter"
            shape.add(part.gradient, f"gradient of {part.what}'s sum", "all-gather", part.axes,
                      shape.residual * shape.wire_item, per_layer=True)  # fmt: skip
        shape.add(part.gradient, f"gradient into {part.what}", kind, part.axes, whole,
                  per_layer=True)  # fmt: skip
    with shape.running(shape.runs.weights):
        for axes, size in shape.gathered(w for _, w in shape.stacked()).items():
            shape.add("weight_gradient", _SCATTER, "reduce-scatter", axes, size * shape.item,
                      per_layer=True)  # fmt: skip


def _ends_backward(shape: PassShape, param_bytes: int) -> None:
    """Add the gradients from the logits to the last layer, and of looked-up rows."""
    whole = shape.residual * shape.item
    role: Role = "unembedding_gradient"
    norm_seq = shape.over("act_norm_seq")
    shape.add(role, "gradient of the last gather", "reduce-scatter", norm_seq, whole)
    axes = tuple(a for a in shape.over("vocab") if a not in norm_seq)
    shape.add(role, "gradient into the head", "all-reduce", axes, whole)
    for axes, size in shape.ends(param_bytes):
        shape.add("end_weight_gradient", _SCATTER, "reduce-scatter", axes, size)
    exchanged = shape.split.row_path.exchanged
    for rows in shape.looked_up():
        if shape.over("layers"):  # the tick of the gradient is not that of the embedding
            shape.add("table_rows", "ids of rows of tables, backward", "all-gather", exchanged,
                      4 * rows * shape.devices(exchanged))  # fmt: skip
        share = rows * shape.config.d_model * shape.item / shape.split.count("lookup")
        shape.add("table_rows", "gradients of rows of tables", "all-to-all",
                  exchanged, share)  # fmt: skip


def _cross_entropy(shape: PassShape) -> None:
    """Add the sums of the loss."""
    vocab, row = shape.over("vocab"), shape.tokens * shape.wide
    tokens = shape.over("act_batch", "act_seq")
    shape.add("loss", "maximum and sum of the softmax", "all-reduce", vocab, 2 * row)
    shape.add("loss", "label's logit", "all-reduce", vocab, row)
    shape.once("loss", "mean loss", "all-reduce", tokens, shape.wide)
    if shape.workload.packed:
        shape.once("loss", "number of tokens", "all-reduce", tokens, 4)


def _routers(shape: PassShape) -> None:
    """Add the sums of routers' choices, and of the load-balancing loss."""
    config, tokens = shape.config, shape.over("act_batch", "act_seq")
    alike = tuple(a for a in shape.over("mlp", "expert") if a not in tokens)
    choices = shape.layers * shape.chunks * config.num_experts * 4
    what = "how often experts are chosen"
    if shape.workload.microbatches > 1:
        shape.once("balance_loss", what, "all-reduce", (*tokens, *alike), choices)
    else:
        shape.add("balance_loss", what, "all-reduce", (*tokens, *alike), choices)
    axes = (*tokens, *alike, *shape.over("layers"))
    if set(axes) != set(tokens):  # otherwise it is summed with the loss
        shape.once("balance_loss", "load-balancing loss", "all-reduce", axes, shape.wide)


def _gradients(shape: PassShape, param_bytes: int) -> None:
    """Add the sums of gradients, and the gather of updated parameters."""
    for (how, axes), size in gradient_sums(shape.sharded).items():
        kind = {"sum": "all-reduce", "scatter": "reduce-scatter"}[how]
        shape.once("gradient_sum", f"gradients over {_named(axes)}", kind, axes,
                   size * param_bytes)  # fmt: skip
    for axes, size in gathered_parameters(shape.sharded).items():
        shape.once("parameter_gather", f"updated parameters over {_named(axes)}", "all-gather",
                   axes, size * param_bytes)  # fmt: skip


def _named(axes: Iterable[str]) -> str:
    return ", ".join(axes)
