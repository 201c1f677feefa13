"""Checks of a compare request that need no strategy: choices, files, a swept axis, lenses."""

from collections.abc import Sequence
from typing import get_args

from parallax.commands.sweep import SweepAxis, parse_sweep
from parallax.distributed.processes import process_count
from parallax.lenses.text import read_text
from parallax.meshes.cluster import Cluster
from parallax.papers.placing import check_budget
from parallax.parallel.layer_parts import ScheduleName
from parallax.parallel.remat import check_remat
from parallax.parallel.sharded_weights import Gather
from parallax.requests.compare import LENSES, SWEEP_LENSES, CompareRequest
from parallax.requests.naming import resolve_rates
from parallax.rules import Phase
from parallax.strategies import STRATEGIES


def check_choices(request: CompareRequest) -> None:
    """Raise ValueError for a value outside of its choices or range."""
    check_remat(request.remat)
    for name, choices in (
        ("phase", get_args(Phase)),
        ("gather", (None, *get_args(Gather))),
        ("schedule", (None, *get_args(ScheduleName))),
    ):
        value = getattr(request, name)
        if value not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(filter(None, choices))}; got {value!r}."
            )
    for name in ("batch", "seq_len", "microbatches"):
        value = getattr(request, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    for name in ("strategies", "lenses"):
        value = getattr(request, name)
        if value is not None and not value:
            raise ValueError(f"{name}: the list is empty. Name some, or leave it out.")
    if request.repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {request.repeats}.")


def check_inputs(request: CompareRequest, cluster: Cluster, lenses: Sequence[str]) -> None:
    """Raise ValueError for unusable files and unknown names."""
    resolve_rates(request.rates, cluster)
    if request.budget is not None:
        check_budget(request.budget, cluster)
    if {"verify", "measure"} & set(lenses):
        read_text(request.text, 1)


def swept_axis(request: CompareRequest) -> SweepAxis | None:
    """Return the swept axis, checked against the other fields."""
    if request.sweep is None:
        return None
    sweep = parse_sweep(request.sweep)
    if sweep.axis in ("batch", "seq_len") and getattr(request, sweep.axis) is not None:
        raise ValueError(f"{sweep.axis} is given and swept. Leave out {sweep.axis}.")
    if "measure" in request.run_lenses():
        raise ValueError("sweep compiles and predicts; it measures nothing. Leave out measure.")
    if sweep.axis == "devices":
        _check_swept_devices(request)
    return sweep


def _check_swept_devices(request: CompareRequest) -> None:
    fixed = [s for s in request.strategies or () if s not in STRATEGIES]
    if request.mesh is None and not fixed:
        return
    if request.mesh is not None:
        what = f"mesh {request.mesh}"
    else:
        what = f"strategy {fixed[0] if isinstance(fixed[0], str) else fixed[0].name}"
    raise ValueError(
        f"{what} is for one number of devices, and devices are swept. Use names of strategies "
        f"({', '.join(STRATEGIES)}) without a mesh."
    )


def checked_lenses(request: CompareRequest) -> tuple[str, ...]:
    """Return the lenses asked for, in the order in which they run; several processes measure."""
    asked = request.run_lenses()
    if unknown := [x for x in asked if x not in LENSES]:
        raise ValueError(f"unknown lens {unknown[0]!r}. Use some of: {', '.join(LENSES)}.")
    if request.sweep is not None and not set(asked) & set(SWEEP_LENSES):
        raise ValueError(f"sweep compiles every point. Use lenses {', '.join(SWEEP_LENSES)}.")
    if process_count() > 1 and set(asked) != {"measure"}:
        default = "the default " if request.lenses is None else ""
        raise ValueError(
            f"--distributed measures on {process_count()} processes and runs no other lens; "
            f"{default}--lenses={','.join(asked)} asks for others. Give --lenses=measure, and run "
            "the others without --distributed, on one machine."
        )
    return tuple(x for x in LENSES if x in asked)
