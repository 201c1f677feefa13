"""Which layers, embedding and loss a stage of a described pipeline runs."""

from typing import Literal, NamedTuple

from parallax.models.config import ModelConfig
from parallax.models.flops import attention_flops
from parallax.models.parameters import layer_parameters

Placement = Literal["even", "by_flops"]


class Stages(NamedTuple):
    """What each stage of a pipeline holds.

    Attributes:
      layers: layers per stage, in order.
      head: the stage with the unembedding.
      loss: the stage with the loss.
    """

    layers: tuple[int, ...]
    head: int
    loss: int


def place_stages(config: ModelConfig, stages: int, placement: Placement, seq_len: int) -> Stages:
    """Place a model's layers and ends on the stages of a pipeline; the embedding is on the first.

    Args:
      config: the model.
      stages: number of stages.
      placement: "even" gives every stage as many layers, the earlier ones one more where they do
        not divide, and the last one unembedding and loss. "by_flops" fills a stage until the FLOPs
        of layers and unembedding exceed its share; the loss comes one stage after the unembedding
        if that filled its stage. So nanotron's stages behave.
      seq_len: tokens per sequence.
    """
    if placement == "even":
        each, more = divmod(config.num_layers, stages)
        return Stages(tuple(each + (s < more) for s in range(stages)), stages - 1, stages - 1)
    layer = float(sum(p.flops_per_token for p in layer_parameters(config)))
    layer += attention_flops(config, 1, seq_len) / seq_len / config.num_layers
    blocks = [layer] * config.num_layers + [2.0 * config.vocab_size * config.d_model]
    share, filled, stage, places = sum(blocks) / stages, 0.0, 0, []
    for size in blocks:
        places.append(stage)
        filled += size
        stage += filled > share * (stage + 1)
    layers = tuple(places[:-1].count(s) for s in range(stages))
    return Stages(layers, places[-1], min(stage, stages - 1))


def stage_layers(
    config: ModelConfig, stages: Stages
) -> tuple[tuple[tuple[ModelConfig, int], ...], ...]:
    """Return each stage's layers as (config, count); dense first layers have their own config."""
    out, done = [], 0
    for n in stages.layers:
        first = max(0, min(n, config.dense_layers - done))
        kinds = [(config, n - first)] if n > first else []
        out.append(tuple([(config.of_dense_layers, first), *kinds] if first else kinds))
        done += n
    return tuple(out)
