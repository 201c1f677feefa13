"""The fit of described training software to measured steps.

A step's work is counted once, so that a fit takes seconds.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from parallax.analytic.described.implementation import ContextScheme, Implementation
from parallax.analytic.described.layer_work import Bench
from parallax.analytic.described.layout import Layout
from parallax.analytic.described.stages import Placement
from parallax.analytic.described.step_work import StageWork, step_work
from parallax.analytic.described.training import step_seconds, step_terms
from parallax.analytic.described.training_memory import StageMemory, memory_of, stage_memory
from parallax.cost.networks import rates_for
from parallax.cost.rates import rates_of
from parallax.meshes.cluster import cluster, on_network
from parallax.studies.validation.models import model_of
from parallax.studies.validation.rows import TrainingRow

# Residuals are logarithms of ratios; beyond 5 % they weigh less.
_SCALE = 0.05

# Where fits start. What is known of the software and not fitted: gradients are summed in float32,
# a parameter has a float32 master copy and two moments.
START = Implementation(
    name="nanotron", placement="by_flops", blocking=False, context="ring", products_share=0.8,
    attention_share=0.8, passes=1.5, loss_bytes=40.0, host_layer_s=4.5e-3, host_rank_s=0.0,
    start_between_s=5e-5, handoff_s=1e-3, step_s=1e-3, tensor_overlap=0.5, context_overlap=0.0,
    gather_overlap=0.5, gradient_overlap=0.5, gradient_bytes=4, buffer_bytes=0.0,
    state_bytes=12, kept=1.2, kept_gathered=2.0, kept_logit_bytes=12.0, fixed_bytes=0.0, sources={},
)  # fmt: skip


class Constant(NamedTuple):
    """A constant to fit, between two ends."""

    name: str
    low: float
    high: float


TIME = (
    Constant("products_share", 0.4, 1.0), Constant("attention_share", 0.3, 1.0),
    Constant("passes", 1.0, 6.0), Constant("loss_bytes", 14.0, 100.0),
    Constant("host_layer_s", 1e-3, 1e-2), Constant("start_between_s", 0.0, 1e-3),
    Constant("handoff_s", 0.0, 2e-2), Constant("step_s", 0.0, 0.2),
    Constant("tensor_overlap", 0.0, 1.0), Constant("gradient_overlap", 0.0, 1.0),
)  # fmt: skip
HOST_RANK = Constant("host_rank_s", 0.0, 1e-2)
MEMORY = (
    Constant("kept", 0.5, 3.0), Constant("kept_logit_bytes", 4.0, 40.0),
    Constant("fixed_bytes", 0.0, 5e9), Constant("buffer_bytes", 0.0, 4.0),
)  # fmt: skip
GATHERED = Constant("kept_gathered", 0.0, 4.0)
SHARDED = (*TIME[:4], Constant("gather_overlap", 0.0, 1.0))
# What other software is known or assumed to do; its kernels are taken to be as fast as nanotron's.
SYNCHRONOUS = {"host_rank_s": 2e-3, "blocking": True, "kept_gathered": 0.0}
MEGATRON = {
    "placement": "even", "context": "all-to-all", "loss_bytes": 14.0,
    "tensor_overlap": 0.0, "context_overlap": 0.0, "gather_overlap": 0.0, "gradient_overlap": 0.0,
    "kept": 1.0, "kept_gathered": 0.0, "kept_logit_bytes": 8.0, "handoff_s": 0.0, "step_s": 0.0,
    "fixed_bytes": 0.0, "buffer_bytes": 0.0,
}  # fmt: skip
FOUNDRY = {"placement": "even", "gather_overlap": 0.8, "kept_gathered": 0.0, "step_s": 0.0}
TORCHTITAN = {
    "placement": "even", "passes": 1.0, "loss_bytes": 14.0, "host_layer_s": 0.0,
    "gather_overlap": 0.8, "kept_gathered": 0.0, "step_s": 0.0,
}  # fmt: skip
SAID = {
    "nanotron": "fitted to published steps of nanotron on 1 to 4 nodes of 8 H100",
    "llm_foundry": "fitted to published steps of LLM Foundry on A100",
    "form": "chosen by how published steps of nanotron behave",
    "assumed": "known or assumed of {}",
    "known": "float32 sums of gradients; float32 weights and two moments",
}


@functools.cache
def layout_of(row: TrainingRow) -> Layout:
    """Return the layout of a measured step."""
    names = {f.name for f in dataclasses.fields(Layout)} & {f.name for f in dataclasses.fields(row)}
    return Layout(**{name: getattr(row, name) for name in names})


def stack[Work: (StageWork, StageMemory)](steps: Sequence[Sequence[Work]]) -> Work:
    """Stack steps of several stages into arrays [step, stage]; missing stages have no work."""
    stages = max(map(len, steps))
    padded = [np.pad(np.array(s), ((0, stages - len(s)), (0, 0))) for s in steps]
    return type(steps[0][0])(*np.moveaxis(np.array(padded), 2, 0))


class Steps(NamedTuple):
    """The work of measured steps, stacked, and what was measured; NaN where nothing was."""

    work: StageWork
    memory: StageMemory
    microbatches: np.ndarray
    seconds: np.ndarray
    memory_bytes: np.ndarray
    memory_bytes_per_s: float

    def take(self, which: np.ndarray) -> "Steps":
        """Return some of the steps."""
        return Steps(
            StageWork(*(field[which] for field in self.work)),
            StageMemory(*(field[which] for field in self.memory)),
            self.microbatches[which], self.seconds[which], self.memory_bytes[which],
            self.memory_bytes_per_s,
        )  # fmt: skip

    def modelled_seconds(self, software: Implementation) -> np.ndarray:
        """Estimate the seconds of every step."""
        terms = step_terms(self.work, software, self.memory_bytes_per_s)
        return step_seconds(terms, self.microbatches)

    def modelled_bytes(self, software: Implementation, item: int = 2) -> np.ndarray:
        """Estimate the bytes of every step's fullest stage."""
        return np.asarray(sum(memory_of(self.memory, software, item))).max(-1)


@functools.lru_cache(maxsize=8192)
def _counted(
    row: TrainingRow, placement: Placement, context: ContextScheme, gradient_bytes: int
) -> tuple[tuple[StageWork, ...], tuple[StageMemory, ...]]:
    """Count the work and the elements of a step; constants that are fitted do not matter."""
    software = dataclasses.replace(
        START, placement=placement, context=context, gradient_bytes=gradient_bytes
    )
    config, layout = model_of(row.model), layout_of(row)
    where = on_network(cluster(row.cluster), row.network or None)
    work = step_work(config, layout, row.seq_len, Bench(where, rates_for(where)), software)
    return work, stage_memory(config, layout, row.seq_len, software)


def steps_of(rows: Sequence[TrainingRow], software: Implementation) -> Steps:
    """Count the work of measured steps on one kind of GPU."""
    form = software.placement, software.context, software.gradient_bytes
    counted = [_counted(row, *form) for row in rows]
    seconds, memory_bytes = (
        np.array([getattr(row, name) or np.nan for row in rows])
        for name in ("seconds", "memory_bytes")
    )
    return Steps(
        stack([work for work, _ in counted]), stack([memory for _, memory in counted]),
        np.array([r.microbatches for r in rows]), seconds, memory_bytes,
        rates_of(cluster(rows[0].cluster).gpu.name).memory_bytes_per_s,
    )  # fmt: skip


def fit(
    groups: Sequence[tuple[Implementation, Steps]],
    shared: Sequence[Constant],
    own: Mapping[str, Sequence[Constant]],
    residuals: Callable[[Steps, Implementation], np.ndarray],
) -> list[Implementation]:
    """Fit constants of implementations to the steps of each.

    Args:
      groups: implementations to begin with, and their steps.
      shared: constants that all have in common.
      own: name of an implementation -> constants that it has for itself.
      residuals: of some steps.
    """
    keys = [("", c) for c in shared] + [(n, c) for n, cs in own.items() for c in cs]
    low, high = (np.array([getattr(c, end) for _, c in keys]) for end in ("low", "high"))

    def made(x: np.ndarray) -> list[Implementation]:
        values = (low + (high - low) * x).tolist()
        return [
            dataclasses.replace(software, **{
                c.name: float(f"{v:.4g}") if rounds else v
                for (name, c), v in zip(keys, values, strict=True) if name in ("", software.name)
            }) for software, _ in groups
        ]  # fmt: skip

    def all_residuals(x: np.ndarray) -> np.ndarray:
        parts = zip(made(x), groups, strict=True)
        return np.concatenate([residuals(steps, software) for software, (_, steps) in parts])

    rounds = False
    first = {name: software for software, _ in groups for name in ("", software.name)}
    begin = np.array([getattr(first[name], c.name) for name, c in keys])
    begin = np.clip((begin - low) / (high - low), 0.01, 0.99)
    found = least_squares(
        all_residuals, begin, bounds=(0, 1), loss="soft_l1", f_scale=_SCALE, diff_step=1e-4,
        x_scale=0.1,
    )  # fmt: skip
    rounds = True
    return made(found.x)


def time_residuals(steps: Steps, software: Implementation) -> np.ndarray:
    """Return the logarithms of modelled over measured seconds, where they were measured."""
    ratio = np.log(steps.modelled_seconds(software) / steps.seconds)
    return ratio[np.isfinite(ratio)]


def memory_residuals(steps: Steps, software: Implementation) -> np.ndarray:
    """Return the logarithms of modelled over measured bytes, where they were measured."""
    ratio = np.log(steps.modelled_bytes(software) / steps.memory_bytes)
    return ratio[np.isfinite(ratio)]


def fit_nanotron(groups: Sequence[tuple[Implementation, Steps]]) -> list[Implementation]:
    """Fit both modes of nanotron: their kernels and loss are the same."""
    timed = fit(groups, TIME, {"nanotron_synchronous": [HOST_RANK]}, time_residuals)
    again = [(software, steps) for software, (_, steps) in zip(timed, groups, strict=True)]
    return fit(again, MEMORY, {"nanotron": [GATHERED]}, memory_residuals)


def starts() -> tuple[Implementation, Implementation]:
    """Return both modes of nanotron before they are fitted."""
    return START, dataclasses.replace(START, name="nanotron_synchronous", **SYNCHRONOUS)


def fit_software(rows: Sequence[TrainingRow]) -> dict[str, Implementation]:
    """Fit the constants of every implementation that is shipped, by name.

    nanotron's and LLM Foundry's are fitted to their steps among `rows`. Those of Megatron and
    torchtitan are nanotron's, but for what is known or assumed of them: none of their steps counts.

    Args:
      rows: measured steps; those without seconds, or excluded, are left out.
    """
    counted = [row for row in rows if row.seconds and not row.excluded]

    def of(software: Implementation) -> tuple[Implementation, Steps]:
        mine = [row for row in counted if row.implementation == software.name]
        return software, steps_of(mine, software)

    nanotron, synchronous = fit_nanotron([of(start) for start in starts()])
    start = dataclasses.replace(nanotron, name="llm_foundry", **FOUNDRY)
    foundry = fit([of(start)], SHARDED, {}, time_residuals)[0]
    megatron = dataclasses.replace(nanotron, name="megatron", **MEGATRON)
    torchtitan = dataclasses.replace(nanotron, name="torchtitan", **TORCHTITAN)
    own = {"llm_foundry": {c.name for c in SHARDED}}
    assumed = {"llm_foundry": FOUNDRY, "megatron": MEGATRON, "torchtitan": TORCHTITAN}
    return {
        made.name: dataclasses.replace(
            made, sources=_sources(made.name, own.get(made.name, ()), assumed.get(made.name, ()))
        )
        for made in (nanotron, synchronous, foundry, megatron, torchtitan)
    }


def _sources(name: str, fitted: Iterable[str], assumed: Iterable[str]) -> dict[str, str]:
    """Return where each constant of an implementation is from, in words."""
    names = [
        f.name for f in dataclasses.fields(Implementation) if f.name not in ("name", "sources")
    ]
    found = dict.fromkeys(names, SAID["nanotron"])
    found |= dict.fromkeys(("placement", "blocking", "context"), SAID["form"])
    found |= dict.fromkeys(assumed, SAID["assumed"].format(name))
    found |= dict.fromkeys(fitted, SAID["llm_foundry"])
    return found | dict.fromkeys(("gradient_bytes", "state_bytes"), SAID["known"])
