"""Models of a record's losses and switches at full size on a GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

from parallax.codec import encode
from parallax.engine.deployment.layout import Layout, Sizes, place
from parallax.engine.deployment.modelled import (
    ASSUMED,
    ModelledRecovery,
    modelled_recovery,
    modelled_switch,
)
from parallax.engine.deployment.stored import end_bytes
from parallax.engine.latency import spread
from parallax.engine.layer_formats import Formats
from parallax.models.config import ModelConfig
from parallax.papers import PAPERS


def modelled_record(
    setup: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    formats: Sequence[Formats],
    strong: Formats,
    paper_name: str | None = None,
) -> dict[str, Any]:
    """Model a record at a paper's full size and workload, else for the model at hand.

    Args:
      setup, trials: those of a record of `deploy`.
      formats: the formats of every layer.
      strong: formats that layers are switched to.
      paper_name: the paper whose model was run small; None takes the model at hand.

    Raises:
      ValueError: the number of layers is not the full model's.
    """
    config = ModelConfig.from_dict(setup["model"])
    sequences = len(setup["prompt_tokens"])
    batch, tokens = sequences, setup["max_len"]
    microbatches = -(-sequences // setup["microbatches_of"])
    if paper_name is not None:
        paper = PAPERS[paper_name]
        named = {config.dtype: paper.config.dtype}
        formats = [(named.get(a, a), named.get(m, m)) for a, m in formats]
        config, work = paper.config, paper.workload
        batch, tokens, microbatches = work.batch, work.seq_len, work.microbatches
    if len(formats) != config.num_layers:
        raise ValueError(
            f"modelled record: formats of {len(formats)} layers, model '{config.name}' has "
            f"{config.num_layers}. Give one per layer."
        )
    # Without a budget the papers' greedy rule would place the full-size model on one device.
    sizes = Sizes(config, batch * tokens, None, "optimal")
    losses = []
    for trial in trials:
        share = prefilled(trial["recomputed_tokens"], setup["prompt_tokens"]) / sequences
        losses.append(
            _loss(sizes, tuple(formats), setup, trial, share, batch, tokens, microbatches)
        )
    mild, dense = formats[0], sizes.footprints(formats)[0].weights
    stronger = sizes.footprints([strong] * len(formats))[0].weights
    return {
        "tag": "modelled", "gpu": "h100", "model": config.name, "dtype": config.dtype,
        "batch": batch, "tokens": tokens, "microbatches": microbatches, "assumed": ASSUMED,
        "losses": {
            name: spread([getattr(r, name) for r in losses])
            for name in ("move_s", "recompute_s", "resume_s") if losses
        },
        "switch": {
            "formats": [mild, strong], "bytes": [dense, stronger],
            "there": encode(modelled_switch(stronger)),
            "back": encode(modelled_switch(dense)),
        },
    }  # fmt: skip


def prefilled(recomputed: int, prompt_tokens: Sequence[int]) -> int:
    """Return the number of sequences whose keys and values were recomputed.

    Microbatches are prefilled in order, so they are the first whose prompts have that many tokens.
    """
    count, total = 0, 0
    for length in prompt_tokens:
        total += length
        count += total <= recomputed
    return count


def _loss(
    sizes: Sizes, formats: tuple[Formats, ...], setup: Mapping[str, Any],
    trial: Mapping[str, Any], share: float, batch: int, tokens: int, microbatches: int,
) -> ModelledRecovery:  # fmt: skip
    """Model a trial's loss at full size: the layout after it, what moves, what runs again.

    Args:
      share: the share of the sequences whose keys and values are recomputed.
    """
    stops = tuple(row["layers"][1] + 1 for row in setup["layout"])
    before = Layout(tuple(range(len(stops))), stops, formats)
    gone = sorted({before.device_of(layer) for layer in trial["layers"]})
    if not gone:  # a spare was lost
        return modelled_recovery(sizes.config, 0, 0, (), batch, tokens)
    after, taking = before, iter(range(len(stops), len(stops) + len(trial["spares"])))
    for device in gone[: len(trial["spares"])]:
        after = after.replaced(device, next(taking))
    rest = [d for d in after.devices if d not in gone]
    if len(rest) < len(after.devices):
        after = place(sizes, formats, rest, {d: after.layers_on(d) for d in rest})
    host, between = _moved(sizes, before, after, gone, share)
    groups: list[int] = []
    if share:
        lost = [i for i in range(len(formats)) if before.device_of(i) in gone]
        last = after.devices.index(after.device_of(max(lost)))
        groups = [len(group) for group in after.groups[: last + 1]]
    return modelled_recovery(
        sizes.config, host, between, groups, round(batch * share), tokens,
        microbatches=max(1, round(microbatches * share)),
    )  # fmt: skip


def _moved(
    sizes: Sizes, before: Layout, after: Layout, gone: Sequence[int], share: float
) -> tuple[int, int]:
    """Return the bytes from the host, for what lost devices held, and from other devices."""
    footprints, host, between = sizes.footprints(before.formats), 0, 0
    for layer, footprint in enumerate(footprints):
        was = before.device_of(layer)
        if was in gone:
            host += footprint.weights
        elif after.device_of(layer) != was:
            between += footprint.weights + round(share * footprint.kv)
    for which, end in (("first", 0), ("last", -1)):
        if before.devices[end] in gone:
            host += end_bytes(sizes.config, which)
        elif before.devices[end] != after.devices[end]:
            between += end_bytes(sizes.config, which)
    return host, between
