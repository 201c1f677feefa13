"""The fit of serving software's constants to measured loads."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from parallax.analytic.described.replica import Replica
from parallax.analytic.described.serving import Load, serve
from parallax.analytic.described.serving_constants import ServingConstants
from parallax.cost import rates_of
from parallax.meshes.cluster import cluster
from parallax.studies.validation.models import model_of
from parallax.studies.validation.rows import ServingRow

TTFT_WEIGHT = 0.5  # of a TTFT's residual beside a TPOT's: it scatters more
_ASSUMED = "the software's default"
_ON = "fitted on the 180 rows of tables/serve.csv"

# name -> (first guess, least, most).
BOUNDS = {
    "step_s": (2e-3, 0.0, 2e-2),
    "sequence_s": (2e-5, 0.0, 3e-4),
    "request_s": (2e-2, 0.0, 0.2),
    "in_waves": (0.2, 0.0, 1.0),
    "arriving": (2.5, 1.0, 12.0),
    "memory_share": (0.8, 0.5, 0.95),
    "late_slots": (1.0, 0.0, 4.0),
    "stream_token_s": (1.1e-4, 0.0, 4e-4),
    "stream_request_s": (3e-2, 0.0, 8e-2),
    "stream_first": (0.6, 0.0, 1.0),
}
FREE = {
    "trtllm": ("step_s", "request_s", "in_waves", "late_slots", "stream_token_s",
               "stream_request_s", "stream_first"),
    "vllm": ("step_s", "sequence_s", "request_s", "in_waves", "arriving", "memory_share"),
    "sglang": ("step_s", "sequence_s", "request_s", "in_waves", "memory_share"),
}  # fmt: skip
_START = ServingConstants(
    name="", mixes=True, step_tokens=8192, memory_share=0.85, step_s=0.0,
    sequence_s=0.0, request_s=0.0, in_waves=0.0, arriving=1.0, late_slots=0.0, stream_token_s=0.0,
    stream_request_s=0.0, stream_first=0.5, sources={},
)  # fmt: skip
START = {
    "trtllm": dataclasses.replace(_START, name="trtllm"),
    "vllm": dataclasses.replace(_START, name="vllm"),
    "sglang": dataclasses.replace(_START, name="sglang", mixes=False),
}


@dataclass(frozen=True)
class Row:
    """A measured load: what serves it, and seconds to the first token and per token after it."""

    software: str
    replica: Replica
    load: Load
    ttft_s: float | None
    tpot_s: float | None
    key: str


def loads_of(rows: Iterable[ServingRow]) -> list[Row]:
    """Return measured loads as a fit takes them; those of one model and degree share a replica."""
    return [
        Row(row.implementation, _replica(row.model, row.cluster, row.tensor, row.pipeline),
            Load(row.batch, row.prompt_len, row.output_len), row.ttft_s, row.tpot_s, row.key)
        for row in rows
    ]  # fmt: skip


def fit(some: Sequence[Row]) -> dict[str, ServingConstants]:
    """Fit the constants of each piece of software to its own of some rows."""
    return {name: _fit(START[name], [r for r in some if r.software == name]) for name in FREE}


def _fit(start: ServingConstants, some: Sequence[Row]) -> ServingConstants:
    names = FREE[start.name]
    begin, low, high = np.array([BOUNDS[n] for n in names]).T

    def residuals(x: np.ndarray) -> list[float]:
        software = _with(start, x * begin)
        out = []
        for row in some:
            found = serve(row.replica, row.load, software)
            if row.tpot_s is not None:
                out.append(math.log(found.tpot.seconds / row.tpot_s))
            if row.ttft_s is not None:
                out.append(TTFT_WEIGHT * math.log(found.ttft.seconds / row.ttft_s))
        return out

    found = least_squares(
        residuals, np.ones(len(names)), bounds=(low / begin, high / begin), loss="soft_l1",
        f_scale=0.1, diff_step=1e-4, ftol=1e-5, xtol=1e-5,
    )  # fmt: skip
    return _with(start, np.array([float(f"{v:.4g}") for v in found.x * begin]))


def _with(start: ServingConstants, values: np.ndarray) -> ServingConstants:
    """Return constants with fitted values, and where each is from."""
    own = dict(zip(FREE[start.name], values.tolist(), strict=True))
    sources = dict.fromkeys(own, _ON) | {"mixes": _ASSUMED, "step_tokens": _ASSUMED}
    if "memory_share" not in own:
        sources["memory_share"] = "assumed, as vLLM's: no row of it fills the memory"
    return dataclasses.replace(start, **own, sources=sources)


@functools.cache
def _replica(model: str, cluster_name: str, tensor: int, pipeline: int) -> Replica:
    gpus = cluster(cluster_name)
    return Replica(model_of(model), tensor, pipeline, gpus, rates_of(gpus.gpu.name))
