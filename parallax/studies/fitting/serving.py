"""The fit of serving software's constants to measured loads, and its errors on held-out rows.

`python -m parallax.studies.fitting.serving` prints the errors; `--write` ships the constants of all rows.
"""

import argparse
import csv
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from parallax.analytic.described.replica import Replica
from parallax.analytic.described.serving import Load, Serving, serve
from parallax.analytic.described.serving_constants import ServingConstants, write_shipped
from parallax.cost import rates_of
from parallax.cost.measurements import FOLDS, fold_of
from parallax.meshes.cluster import cluster
from parallax.models.config import ModelConfig
from parallax.models.huggingface import read_config

TABLES = Path(__file__).parents[2] / "parallax" / "studies" / "validation" / "tables"
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
    ttft_s: float
    tpot_s: float
    key: str


def rows() -> tuple[Row, ...]:
    """Read the shipped table; rows of one model and degree share a replica."""
    with (TABLES / "serve.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(r) for r in csv.DictReader(file) if not r["excluded"])


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
            out.append(math.log(found.tpot.seconds / row.tpot_s))
            out.append(TTFT_WEIGHT * math.log(found.ttft.seconds / row.ttft_s))
        return out

    found = least_squares(
        residuals, np.ones(len(names)), bounds=(low / begin, high / begin), loss="soft_l1",
        f_scale=0.1, diff_step=1e-4, ftol=1e-5, xtol=1e-5,
    )  # fmt: skip
    return _with(start, np.array([float(f"{v:.4g}") for v in found.x * begin]))


def held_out(all_rows: Sequence[Row]) -> list[tuple[Row, Serving]]:
    """Estimate each row with constants fitted to the rows of the other folds."""
    out = []
    for fold in range(FOLDS):
        software = fit([r for r in all_rows if fold_of(r.key) != fold])
        out += [(r, serve(r.replica, r.load, software[r.software]))
                for r in all_rows if fold_of(r.key) == fold]  # fmt: skip
    return out


def report(found: Iterable[tuple[Row, Serving]]) -> str:
    """Write the errors of estimates as lines of text, by software, degree and batch."""
    pairs = list(found)
    groups: dict[str, Callable[[Row], bool]] = {"all": lambda r: True}
    groups |= {s: lambda r, s=s: r.software == s for s in FREE}
    for n in (1, 2, 4, 8):
        groups[f"tensor {n}"] = lambda r, n=n: r.replica.tensor == n
    for b in (8, 16, 32, 64, 128):
        groups[f"batch {b}"] = lambda r, b=b: r.load.batch == b
    lines = []
    for name, member in groups.items():
        of = [(r, s) for r, s in pairs if member(r)]
        degrees = [math.log(r.replica.tensor) for r, _ in of]
        for what, logs in (
            ("TPOT", [math.log(s.tpot.seconds / r.tpot_s) for r, s in of]),
            ("TTFT", [math.log(s.ttft.seconds / r.ttft_s) for r, s in of]),
        ):
            errors = np.abs(np.expm1(logs))
            trend = np.polyfit(degrees, logs, 1)[0] if len(set(degrees)) > 1 else 0.0
            lines.append(
                f"{name:10} {what} n {len(of):3}  median {np.median(errors):5.1%}  p90 "
                f"{np.quantile(errors, 0.9):6.1%}  bias {np.median(logs):+.3f}  trend {trend:+.3f}"
            )
    return "\n".join(lines)


def _with(start: ServingConstants, values: np.ndarray) -> ServingConstants:
    """Return constants with fitted values, and where each is from."""
    own = dict(zip(FREE[start.name], values.tolist(), strict=True))
    sources = dict.fromkeys(own, _ON) | {"mixes": _ASSUMED, "step_tokens": _ASSUMED}
    if "memory_share" not in own:
        sources["memory_share"] = "assumed, as vLLM's: no row of it fills the memory"
    return dataclasses.replace(start, **own, sources=sources)


def _row(cells: Mapping[str, str]) -> Row:
    names = ("model", "cluster", "implementation", "tensor", "pipeline", "batch", "prompt_len",
             "output_len")  # fmt: skip
    load = Load(*(int(cells[n]) for n in names[5:]))
    replica = _replica(cells["model"], cells["cluster"], int(cells["tensor"]),
                       int(cells["pipeline"]))  # fmt: skip
    return Row(
        cells["implementation"], replica, load, float(cells["ttft_s"]), float(cells["tpot_s"]),
        ",".join(cells[n] for n in names),
    )  # fmt: skip


@functools.cache
def _replica(model: str, cluster_name: str, tensor: int, pipeline: int) -> Replica:
    gpus = cluster(cluster_name)
    return Replica(_model(model), tensor, pipeline, gpus, rates_of(gpus.gpu.name))


@functools.cache
def _model(name: str) -> ModelConfig:
    return read_config(TABLES / "models" / f"{name}.json").replace(name=name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="ship constants fitted to all rows")
    parser.add_argument("--fitted", action="store_true", help="errors on the fitted rows, faster")
    arguments = parser.parse_args()
    table = rows()
    software = fit(table)
    for constants in software.values():
        print(constants)
    pairs = [(r, serve(r.replica, r.load, software[r.software])) for r in table]
    print(report(pairs if arguments.fitted else held_out(table)))
    if arguments.write:
        write_shipped(software)


if __name__ == "__main__":
    main()
