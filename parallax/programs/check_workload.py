"""The check that a model under a strategy can run a workload."""

import functools

from parallax.models.block import attention_shape
from parallax.models.config import ModelConfig
from parallax.models.rope import check_whole_pairs
from parallax.models.tiled import check_tiles
from parallax.rules import check_divides
from parallax.strategy import Strategy
from parallax.workload import Workload


@functools.lru_cache(maxsize=1024)
def check_workload(config: ModelConfig, strategy: Strategy, workload: Workload) -> None:
    """Raise ValueError if a model under a strategy cannot run a workload; the error says why."""
    split = strategy.split()
    where = f"Strategy '{strategy.name}'"
    mesh = strategy.mesh_axes
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
