"""A step of layers of several kinds, or with dense first layers, as a sum of steps of one kind."""

from collections import Counter
from dataclasses import replace

from parallax.models.layer_kinds import LayerKind
from parallax.parallel.layer_parts import Pipeline
from parallax.programs.steps import TransformerStep

Sum = list[tuple[float, TransformerStep]]  # (factor, a step whose layers are all alike)


def single_kinds(step: TransformerStep) -> Sum:
    """Return factors and steps whose costs add up to this step's, the most like it first.

    A step's time is linear in its layers but for what overlaps between them.
    """
    if step.config.dense_layers:
        return _with_first_layers(step)
    kinds, layers = step.config.kinds, step.config.num_layers
    if len(set(kinds)) == 1:
        return [(1.0, step)]
    counts = Counter(LayerKind(kinds[i % len(kinds)].window) for i in range(layers))
    # A pattern of one kind keeps the period, at which stages start.
    return [
        (n / layers, step.with_config(step.config.replace(pattern=(kind,) * len(kinds))))
        for kind, n in counts.most_common()
    ]


def _with_first_layers(step: TransformerStep) -> Sum:
    """Return the stack, and as many layers of a dense model as there are dense first layers.

    Every stage runs the first layers, so that each costs as much as one more layer on all stages.
    """
    config, strategy = step.config, step.strategy
    stack = config.replace(num_layers=config.stacked_layers, dense_layers=0, dense_d_ff=0)
    # Stages of as many layers each, whatever those of the stack have.
    if isinstance(strategy.layers, Pipeline):
        strategy = strategy.replace(layers=replace(strategy.layers, layers=None))
    layers = strategy.layers.virtual_stages * len(config.kinds)
    several = strategy.split().count("layers") * layers
    share = config.dense_layers / layers
    found = single_kinds(step.with_config(stack))
    for factor, n in ((share, 2), (-share, 1)):
        dense = config.of_dense_layers.replace(num_layers=n * several)
        found += [(factor * f, one) for f, one in single_kinds(step.with_config(dense, strategy))]
    return found
