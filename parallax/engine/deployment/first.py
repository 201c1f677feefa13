"""The first layout of a deployment, and the checks of what cannot be deployed."""

from collections.abc import Sequence

from parallax.engine.deployment.layout import Layout, Rule, Sizes, place
from parallax.engine.layer_formats import Formats, check_formats
from parallax.models.config import ModelConfig


def first_layout(
    config: ModelConfig, devices: int, *, batch: int, max_len: int, microbatches: int, spares: int,
    budget: int | None, formats: str | Sequence[Formats] | None, rule: Rule,
) -> tuple[Sizes, Layout]:  # fmt: skip
    """Place a deployment's layers before any weight is loaded; raise as `Deployment` does."""
    if config.compression is not None:
        formats = _as_stored(config, formats)
        config = config.replace(compression=None)
    _check(config, devices, batch, max_len, microbatches, spares)
    sizes = Sizes(config, batch * max_len, budget, rule)
    return sizes, place(sizes, check_formats(config, formats), range(devices - spares))


def _as_stored(config: ModelConfig, formats: str | Sequence[Formats] | None) -> list[Formats]:
    """Return the formats of every layer of a model that is already compressed."""
    assert config.compression is not None
    pair = config.compression
    if pair == (config.dtype, config.dtype):
        raise ValueError(
            f"Deployment: model '{config.name}' stores its own {config.dtype} as a format. Give "
            "its dense parameters, and a config without compression."
        )
    stored = [pair] * config.num_layers
    if formats is not None and (isinstance(formats, str) or list(formats) != stored):
        raise ValueError(
            f"Deployment: model '{config.name}' is stored as {','.join(pair)}, and formats= asks "
            "for others. Leave it out, or give dense parameters."
        )
    return stored


def _check(
    config: ModelConfig, devices: int, batch: int, max_len: int, microbatches: int, spares: int
) -> None:
    for name, value, least in (
        ("batch", batch, 1), ("max_len", max_len, 2), ("microbatches", microbatches, 1),
        ("spares", spares, 0),
    ):  # fmt: skip
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"Deployment: {name} must be an integer of at least {least}, got {value!r}."
            )
    if not config.causal:
        raise ValueError(f"Deployment: model '{config.name}' is not causal: it has no next token.")
    if batch % microbatches:
        raise ValueError(
            f"Deployment: {microbatches} microbatches do not divide a batch of {batch}."
        )
    if spares >= devices:
        raise ValueError(
            f"Deployment: {spares} spares of {devices} devices leave none for the layers."
        )
    if config.positions == "learned" and max_len > config.max_seq_len:
        raise ValueError(
            f"Deployment: max_len {max_len} is more than model '{config.name}' has learned "
            f"positions for, {config.max_seq_len}."
        )
