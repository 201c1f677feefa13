"""Sensitivity of each layer's parts to a format, and mixed-precision assignments under a budget."""

from collections.abc import Iterator, Sequence
from statistics import fmean

import numpy as np
from flax import nnx

from parallax.compression.mixing import Choice, assign_mix
from parallax.models.config import PARTS, ModelConfig
from parallax.placement import layer_footprints
from parallax.placement.footprint import part_bytes
from parallax.studies.quality.fitting import Bench
from parallax.studies.quality.intervals import exp_interval, mean_interval
from parallax.studies.quality.results import MixFound, Sensitivity
from parallax.studies.quality.storing import Formats, store

# Formats that a layer may have, and stronger ones that keep one weight of four or eight.
LISTED = ("float16", "float16+2:4", "int8", "int8+2:4", "int4", "int4+2:4")
STRONGER = ("int8+1:4", "int4+1:4", "int8+1:8", "int4+1:8")


def rest_bytes(config: ModelConfig) -> int:
    """Return the bytes of one layer's norms, which stay float16."""
    return layer_footprints(config, "float16")[0].weights - sum(
        part_bytes(config, part, "float16") for part in PARTS
    )


def sensitivities(
    bench: Bench, params: nnx.State, windows: np.ndarray, baseline: np.ndarray,
    formats: Sequence[str],
) -> Iterator[Sensitivity]:  # fmt: skip
    """Measure the held-out loss with one part of one layer in a format and all else in float16.

    Args:
      baseline: nats of every window in float16.
    """
    config = bench.config.replace(dtype="float16")
    for layer in range(config.num_layers):
        for i, part in enumerate(PARTS):
            for form in formats:
                pairs: list[tuple[str, str]] = [("float16", "float16")] * config.num_layers
                pairs[layer] = (form, "float16") if i == 0 else ("float16", form)
                nats = baseline
                if form != "float16":
                    nats = bench.look(store(params, pairs), windows).nats
                more = mean_interval(nats - baseline, "nats/byte")
                yield Sensitivity(layer, part, form, part_bytes(config, part, form), more)


def _damage(found: Sequence[Sensitivity], part: str, form: str, layer: int | None) -> float:
    """Return the loss that a part in a format adds, in a layer or (None) on average; at least 0."""
    of = [s.nats.value for s in found
          if (s.part, s.format) == (part, form) and layer in (None, s.layer)]  # fmt: skip
    return max(0.0, fmean(of))


def trained_mix(
    bench: Bench, params: nnx.State, windows: np.ndarray, baseline: np.ndarray,
    found: Sequence[Sensitivity], budget_share: float,
) -> MixFound:  # fmt: skip
    """Assign formats to the trained model under a share of its layers' float16 bytes."""
    config = bench.config.replace(dtype="float16")
    rest = config.num_layers * rest_bytes(config)
    whole = sum(f.weights for f in layer_footprints(config, "float16"))
    budget = int(budget_share * whole)
    names = tuple(dict.fromkeys(s.format for s in found))
    slots = [
        [Choice(form, part_bytes(config, part, form), _damage(found, part, form, layer))
         for form in names]
        for layer in range(config.num_layers)
        for part in PARTS
    ]  # fmt: skip
    what = f"this model at {budget_share:g} of its layers' float16 bytes"
    weights = (whole - rest) // 2
    least = sum(min(c.n_bytes for c in slot) for slot in slots) + rest
    if least > budget:
        note = f"no mix fits: the smallest formats take {least} bytes"
        return MixFound(what, (), budget, least, least * 8 / weights, None, None, note)
    mix = assign_mix(slots, budget - rest)
    pairs = tuple(zip(mix.names[::2], mix.names[1::2], strict=True))
    total = mix.n_bytes + rest
    return MixFound(
        what, pairs, budget, total, total * 8 / weights, mix.damage,
        _increase(bench, params, pairs, windows, baseline),
        "optimal for sensitivities that add up; measured together",
    )  # fmt: skip


def full_size_mix(
    bench: Bench, params: nnx.State, windows: np.ndarray, baseline: np.ndarray,
    found: Sequence[Sensitivity], full: ModelConfig, budget: int, formats: Sequence[str], what: str,
) -> MixFound:  # fmt: skip
    """Assign a pair of formats to one full-size layer, by the trained model's sensitivities.

    Also measures what the trained model loses with that pair in all layers.

    Args:
      full: a full-size model of equal layers.
      budget: bytes of one layer's weights.
      formats: to choose from.
    """
    rest = rest_bytes(full)
    slots = [
        [Choice(form, part_bytes(full, part, form), _damage(found, part, form, None))
         for form in formats]
        for part in PARTS
    ]  # fmt: skip
    weights = (layer_footprints(full, "float16")[0].weights - rest) // 2
    least = sum(min(c.n_bytes for c in slot) for slot in slots) + rest
    if least > budget:
        pair = tuple(min(slot, key=lambda c: c.n_bytes).name for slot in slots)
        note = (
            f"none of {', '.join(formats)} reaches it: at the least {least / 1e6:.1f} MB, with "
            f"{pair[0]} and {pair[1]}"
        )
        return MixFound(what, (), budget, least, least * 8 / weights, None, None, note)
    mix = assign_mix(slots, budget - rest)
    pair = (mix.names[0], mix.names[1])
    total = mix.n_bytes + rest
    layers = [pair] * bench.config.num_layers
    return MixFound(
        what, (pair,), budget, total, total * 8 / weights,
        mix.damage * bench.config.num_layers, _increase(bench, params, layers, windows, baseline),
        "bytes are of the full-size layer, perplexity of the trained small model with these "
        "formats in all its layers",
    )  # fmt: skip


def _increase(bench: Bench, params, pairs: Formats, windows, baseline):
    nats = bench.look(store(params, pairs), windows).nats
    return exp_interval(nats - baseline, "%", growth=True)
