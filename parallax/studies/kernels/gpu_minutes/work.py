"""The work of each item of the plan, which yields lines of the record one by one."""

import datetime
import functools
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parallax.kernels.assembler import assembler_of
from parallax.kernels.operations import BASELINES, OPERATIONS
from parallax.kernels.validation import Kind, Run
from parallax.lenses.environment import installed_versions
from parallax.studies.kernels.checking import check, compile_case, reference
from parallax.studies.kernels.gpu_minutes.bench import MOSAIC, Bench, Launches
from parallax.studies.kernels.gpu_minutes.plan import Item
from parallax.studies.kernels.timing import copy_gb_per_s, product_tflops

Lines = Iterator[dict[str, Any]]
# Names of operations in `dispatch.choose`, where they differ.
DISPATCHED = {
    "ring_attention": "attention_step",
    "ring_attention_backward": "attention_step_backward",
}


def do(item: Item, bench: Bench) -> Lines:
    """Run an item and yield each line of the record as soon as it is known."""
    work = {"smoke": _smoke, "ceilings": _ceilings, "check": _check, "time": _time,
            "profile": _profile}  # fmt: skip
    return work[item.work](item, bench)


def _smoke(item: Item, bench: Bench) -> Lines:
    random = np.random.default_rng(0)
    data = random.integers(-9, 9, (bench.read_bytes // 512, 128), np.int32)
    after = jnp.zeros((1, 128), jnp.int32)
    run = jax.jit(bench.read).lower(data, after).compile()
    if not np.array_equal(np.asarray(run(data, after)).sum(0), data.sum(0)):
        raise ArithmeticError("the streaming read's sums are wrong")
    on_device = jnp.asarray(data)
    seconds = _whole(bench.measure("streaming_read", run, (on_device, after)))
    versions = installed_versions("jaxlib", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
    yield {
        "kind": "device",
        **_setting(run),
        "python": platform.python_version(),
        "versions": versions,
        "gb_per_s": data.nbytes / seconds / 1e9,
    }


def _ceilings(item: Item, bench: Bench) -> Lines:
    def timer(function, arguments):
        calls = bench.measure("ceiling", function, arguments)
        return [sum(s for _, s in launches) for launches in calls]

    yield {
        "kind": "ceilings",
        "tflops": product_tflops(timer, bench.product),
        "gb_per_s": copy_gb_per_s(timer, bench.copy_bytes),
    }


def _check(item: Item, bench: Bench) -> Lines:
    case = bench.shrink(item.operation, item.case)
    arrays, expected = _expected(item.operation, _without_cut(case))
    compiled = compile_case(OPERATIONS[item.operation], case, bench.check_as, arrays)
    verdict = check(compiled, case.dtype, arrays, expected)
    run = _run(item, item.case.kind, compiled)
    yield replace(run, errors=verdict.errors, is_right=verdict.is_right).line()


def _time(item: Item, bench: Bench) -> Lines:
    arrays = bench.draw(item.operation, item.case)
    known = BASELINES[item.operation].baselines(item.case)
    named = item.baselines or tuple(sorted(known, key=lambda name: name.startswith("mosaic")))
    seconds: dict[str, float | None] = {}
    for name in (name for name in named if name in known):
        try:
            compiled, calls = _measured(bench, name, known[name], arrays)
        # A baseline's failure is recorded, not raised.
        except Exception as problem:
            compiled, calls, why_not = None, None, " ".join(str(problem).split())[:200]
        else:
            why_not = None
        # cuDNN's backward is named "cudnn, with its forward".
        short = "cudnn" if name.startswith("cudnn") else name
        seconds[short] = None if calls is None else _whole(calls)
        if not name.startswith("mosaic"):
            continue
        implementation, _, cut = name.partition(": ")
        kind = item.case.kind
        run = _run(item, kind._replace(cut=cut) if cut else kind, compiled)
        yield replace(
            run,
            implementation=implementation,
            seconds=seconds[name],
            kernel_seconds=None if calls is None else _whole(calls, MOSAIC),
            xla_seconds=seconds.get("xla"),
            cudnn_seconds=seconds.get("cudnn"),
            why_not=why_not,
        ).line()


def _profile(item: Item, bench: Bench) -> Lines:
    call = BASELINES[item.operation].baselines(item.case)["mosaic"]
    _, calls = _measured(bench, "mosaic", call, bench.draw(item.operation, item.case))
    launches = [
        (call[0][0], float(np.median([seconds for _, seconds in call])))
        for call in zip(*calls, strict=True)
    ]
    yield {"kind": "profile", "operation": item.operation, "case": item.case.name,
           "launches": launches}  # fmt: skip


def _measured(
    bench: Bench, name: str, call: Callable | str, arrays: tuple
) -> tuple[Any, list[Launches]]:
    if isinstance(call, str):
        raise NotImplementedError(call)
    compiled = jax.jit(call).lower(*arrays).compile() if arrays else None
    return compiled, bench.measure(name, compiled or call, arrays)


def _whole(calls: list[Launches], named: str = "") -> float:
    """Return the median seconds of a call's launches whose names contain `named`."""
    return float(np.median([sum(s for name, s in launches if named in name) for launches in calls]))


def _run(item: Item, kind: Kind, compiled: Any) -> Run:
    operation = DISPATCHED.get(item.operation, item.operation)
    return Run(operation, "mosaic", item.case.name, *kind, **_setting(compiled))


def _setting(compiled: Any) -> dict[str, Any]:
    """Return the device and the versions with which a program ran."""
    assembler = None if compiled is None else assembler_of(compiled)
    version, source = (None, None) if assembler is None else assembler
    return {
        "gpu": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "assembler": version,
        "assembler_source": source,
        "date": datetime.date.today().isoformat(),
    }


def _without_cut(case: Any) -> Any:
    return case._replace(tile=None) if hasattr(case, "tile") else case


@functools.lru_cache(1)
def _expected(operation: str, case: Any) -> tuple[tuple, list[np.ndarray]]:
    """Return inputs and float64 outputs, computed once for consecutive tilings of a case."""
    arrays = OPERATIONS[operation].inputs(case, 0)
    return arrays, reference(OPERATIONS[operation], case, arrays)
