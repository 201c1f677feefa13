"""Times the attention kernels of this GPU side by side: ours, cuDNN's, XLA's and tokamax's.

Times are of the GPU's kernels alone, by CUPTI, a call at a time. The ceiling is a large bfloat16
product in the same run. Every case is checked against float64 before it is timed.
"""

import importlib.metadata
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parallax.kernels.ring_attention import attention_step, empty_carry, finish
from parallax.kernels.ring_attention.cases import TIMED, Case, inputs

Progress = Callable[[str], None]
# (function, arguments) -> seconds of each of several calls.
Timer = Callable[[Callable, tuple], list[float]]
IMPLEMENTATIONS = ("mosaic", "mosaic, 16 steps", "cudnn", "tokamax", "xla")
_CALLS = 20
_GEMM = 8192
_STEPS = 16
# Rows checked against float64: whole attention of a long case would take minutes on a CPU.
_CHECKED_ROWS = 64


@dataclass(frozen=True)
class Timing:
    """One implementation on one case.

    Attributes:
      case: its name. implementation: of IMPLEMENTATIONS.
      median_s, low_s, high_s: of its calls: median, and 10th and 90th percentiles; None: not run.
      tflops: visible FLOPs over the median.
      error: of some rows against float64, relative.
      why_not: where it did not run.
    """

    case: str
    implementation: str
    median_s: float | None = None
    low_s: float | None = None
    high_s: float | None = None
    tflops: float | None = None
    error: float | None = None
    why_not: str | None = None


def time_kernels(
    *, cases: Sequence[Case] = TIMED, timer: Timer, on_progress: Progress
) -> dict[str, Any]:
    """A record of everything, for JSON: device, versions, ceiling, rows.

    Raises:
      ValueError: the device at hand is no GPU.

    Cost: about a minute a case on a GPU, most of it compiling and checking.
    """
    device = jax.devices()[0]
    on_progress("ceiling")
    ceiling = _ceiling(timer)
    rows = []
    for number, case in enumerate(cases, 1):
        on_progress(f"case {number} of {len(cases)}: {case.name}")
        rows += [_time(case, name, timer) for name in IMPLEMENTATIONS]
    return {
        "device": device.device_kind,
        "versions": _versions(),
        "ceiling_tflops": ceiling,
        "rows": [asdict(row) for row in rows],
    }


def gpu_timer() -> Timer:
    """Times by CUPTI; ValueError where there is no GPU."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        raise ValueError(
            f"the device at hand is {device.device_kind!r}. It needs an NVIDIA GPU; cases that "
            "none has run are marked so in docs/kernels.md."
        )
    from jax.experimental.mosaic.gpu import profiler

    def timer(function, arguments):
        _, milliseconds = profiler.measure(function, iterations=_CALLS)(*arguments)
        assert milliseconds is not None, "CUPTI saw no kernel"
        return [1e-3 * float(x) for x in milliseconds]

    return timer


def implementation_of(case: Case, name: str) -> Callable | None:
    """(q, k, v) -> [B, L, H, K] of one implementation; None if it is not installed."""
    scale = case.head_dim**-0.5
    if name == "cudnn":
        return lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, is_causal=case.is_causal, scale=scale, implementation="cudnn"
        )
    if name == "tokamax":
        if importlib.util.find_spec("tokamax") is None:
            return None
        tokamax = importlib.import_module("tokamax")
        return lambda q, k, v: tokamax.dot_product_attention(
            q, k, v, is_causal=case.is_causal, scale=scale
        )
    steps = _STEPS if "steps" in name else 1
    chosen = name.split(",")[0]

    def ours(q, k, v):
        carry = empty_carry(q)
        length = k.shape[1]
        edges = [length * i // steps for i in range(steps + 1)]
        for start, end in itertools.pairwise(edges):
            carry = attention_step(
                q, k[:, start:end], v[:, start:end], carry, is_causal=case.is_causal, scale=scale,
                implementation=chosen,
            )  # fmt: skip
        return finish(carry, q.dtype)[0]

    return ours


def error_of_rows(case: Case, out, q, k, v) -> float:
    """Relative error of some rows of the output, spread over it, against float64 in NumPy."""
    rows = np.unique(np.linspace(0, case.q_length - 1, _CHECKED_ROWS).astype(int))
    repeat = case.heads // case.kv_heads
    q, k, v = (np.asarray(x).astype(np.float64) for x in (q[:, rows], k, v))
    k, v = np.repeat(k, repeat, axis=2), np.repeat(v, repeat, axis=2)
    scores = np.einsum("blhk,bmhk->bhlm", q, k) * case.head_dim**-0.5
    if case.is_causal:
        scores = np.where(np.arange(case.kv_length) <= rows[:, None], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhlm,bmhk->blhk", p / p.sum(-1, keepdims=True), v)
    found = np.asarray(out)[:, rows].astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _time(case: Case, name: str, timer: Timer) -> Timing:
    if "steps" in name and case.is_causal:
        return Timing(case.name, name, why_not="a causal mask is inside one pair of blocks")
    call = implementation_of(case, name)
    if call is None:
        return Timing(case.name, name, why_not="not installed")
    q, k, v = map(jnp.asarray, inputs(case, seed=0)[:3])
    call = jax.jit(call)
    try:
        error = error_of_rows(case, call(q, k, v), q, k, v)
        seconds = timer(call, (q, k, v))
    # A peer that cannot is a result, whatever it raises.
    except Exception as problem:
        return Timing(case.name, name, why_not=" ".join(str(problem).split())[:200])
    low, median, high = (float(x) for x in np.percentile(seconds, (10, 50, 90)))
    return Timing(case.name, name, median, low, high, case.flops / median / 1e12, error)


def _ceiling(timer: Timer) -> float:
    """TFLOP/s of a product of 8192 x 8192 random bfloat16 matrices."""
    keys = jax.random.split(jax.random.key(0))
    x, y = (jax.random.normal(key, (_GEMM, _GEMM), jnp.bfloat16) for key in keys)
    seconds = timer(jax.jit(jnp.matmul), (x, y))
    return 2.0 * _GEMM**3 / float(np.median(seconds)) / 1e12


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "tokamax", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
