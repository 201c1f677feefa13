"""The closed forms of dense first layers, which every stage of a pipeline runs for itself."""

import dataclasses

from parallax.parallel.layer_parts import Pipeline
from parallax.programs.pass_shape import PassShape, Runs


def first_layers(shape: PassShape) -> PassShape | None:
    """Return the shape of a model's dense first layers alone, without transfers; None without any.

    They run as often as the embedding does.
    """
    config, layers = shape.config, shape.strategy.layers
    if not config.dense_layers:
        return None
    if isinstance(layers, Pipeline):
        layers = dataclasses.replace(layers, layers=None, schedule="gpipe", virtual_stages=1)
    # As many for each stage; those of one are counted.
    count = config.dense_layers * shape.split.count("layers")
    first = PassShape(
        config.of_dense_layers.replace(num_layers=count), shape.strategy.replace(layers=layers),
        shape.workload, shape.platform, shape.decoder,
    )  # fmt: skip
    first.run_as(Runs(*(shape.runs.ends,) * len(Runs._fields)))
    return first


def add_first_layers(shape: PassShape) -> None:
    """Add what dense first layers send in one forward pass or decoding step."""
    first = first_layers(shape)
    if first is None:
        return
    if shape.decoder is None:
        with shape.running(shape.runs.ends):
            shape.add("lookup", "widen embeddings for the dense first layers", "all-gather",
                      shape.over("lookup"), shape.residual * shape.item)  # fmt: skip
    first.of_layers()
    shape.transfers += first.transfers
