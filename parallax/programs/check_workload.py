"""The check that a model under a strategy can run a workload."""

import functools

from parallax.models.block import attention_shape
from parallax.models.config import ModelConfig
from parallax.models.rope import check_whole_pairs
from parallax.models.tiled import check_tiles
from parallax.parallel.split import Split
from parallax.rules import check_divides
from parallax.strategy import Strategy
from parallax.workload import Workload

_MOST = 2**31 - 1  # positions are 32-bit integers
_MOST_BYTES = 2**40  # no GPU has so much memory


@functools.lru_cache(maxsize=1024)
def check_workload(config: ModelConfig, strategy: Strategy, workload: Workload) -> None:
    """Raise ValueError if a model under a strategy cannot run a workload; the error says why."""
    split = strategy.split()
    where = f"Strategy '{strategy.name}'"
    mesh = strategy.mesh_axes
    _check_can_be_made(config, split, workload, where)
    check_divides(
        workload.batch, split.over("act_batch"), mesh,
        where=f"{where}: tokens dim 0", name="act_batch",
    )  # fmt: skip
    check_divides(
        workload.seq_len, split.over("act_seq", "act_norm_seq"), mesh,
        where=f"{where}: tokens dim 1", name="act_seq",
    )  # fmt: skip
    if config.positions == "rope" and config.latent is None:
        check_whole_pairs(config.head_dim, split)
    local = workload.batch // split.count("act_batch")
    if workload.microbatches < 1 or local % workload.microbatches:
        raise ValueError(
            f"{where}: {workload.microbatches} microbatches do not divide the {local} "
            f"sequences a device has (batch {workload.batch}). Use a divisor of {local}."
        )
    if workload.replayed and not config.num_experts:
        raise ValueError(
            f"Model '{config.name}' has no experts to fix the routing of. Use a workload "
            "without replayed=True."
        )
    split_mlps = split.over("mlp", "act_batch", "act_seq")
    axes = dict.fromkeys(split.over("expert", "lookup", "act_norm_seq"))
    whole = tuple(a for a in axes if a not in split_mlps)
    if config.dense_layers and whole:
        raise ValueError(
            f"{where}: mesh axes {whole} do not split the MLPs of the {config.dense_layers} "
            "dense first layers. Use a strategy that splits each expert over them, as "
            "tensor_pipeline does, instead of dealing out whole experts."
        )
    for kind in set(config.kinds):
        calls = attention_shape(
            config, split, local // workload.microbatches, workload.seq_len,
            packed=workload.packed, kind=kind,
        )  # fmt: skip
        strategy.attention.work(calls, mesh)  # raises ValueError for shapes that it cannot split
    if (tiles := getattr(strategy.layers, "tiles", None)) is not None:
        try:
            check_tiles(config, split, tiles)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if config.positions == "learned" and workload.seq_len > config.max_seq_len:
        raise ValueError(
            f"Model '{config.name}': seq_len {workload.seq_len} is longer than its table "
            f"of learned positions, {config.max_seq_len}. Use at most that."
        )


def _check_can_be_made(config: ModelConfig, split: Split, workload: Workload, where: str) -> None:
    """Raise ValueError for sizes that no device could hold a microbatch of, before any is made."""
    for name in ("batch", "seq_len"):
        if (size := getattr(workload, name)) > _MOST:
            raise ValueError(
                f"{where}: {name} {size:,} is not a size of an array, expected at most {_MOST:,}. "
                f"Use a smaller {name}."
            )
    devices = split.count("act_batch", "act_seq")
    tokens = workload.tokens // (devices * max(1, workload.microbatches))
    if (size := tokens * config.d_model * config.item_bytes) > _MOST_BYTES:
        raise ValueError(
            f"{where}: batch {workload.batch:,} of seq_len {workload.seq_len:,} is {tokens:,} "
            f"tokens of a microbatch on each device, whose activations between layers alone are "
            f"{size / 1e12:,.1f} TB, expected at most {_MOST_BYTES / 1e12:,.1f} TB. Use a smaller "
            "batch or seq_len, or more microbatches."
        )
