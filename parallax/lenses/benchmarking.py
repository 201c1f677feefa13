"""The microbenchmarks of the devices at hand: products, attention, copies, launches, links, power.

Times are taken from jitted loops that run the same work n and 3n times in one program, so that the
fixed overhead per call cancels out. Every figure is a median. Where several processes were started,
all of them run everything: links are timed together, the rest on each process's first device.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from parallax.cost.measurements import MeasuredAttention, MeasuredCollective, MeasuredGemm
from parallax.distributed.agreement import wait_for_all
from parallax.lenses.child import Progress
from parallax.lenses.link_benchmarks import Nodes, measure_links, nodes_at_hand
from parallax.lenses.loop_times import seconds_each
from parallax.lenses.power import read_power

# (batch, m, n, k): shapes of decode and prefill, square ones, long and short contracting dims.
SHAPES = (
    *((1, m, 8192, 8192) for m in (1, 8, 16, 64, 128, 256, 1024, 4096, 8192)),
    *((1, m, 4096, 4096) for m in (16, 128, 512, 2048)),
    *((1, m, 16_384, 4096) for m in (16, 256, 2048)),
    *((1, m, 4096, 16_384) for m in (16, 256, 2048)),
    *((1, n, n, n) for n in (256, 512, 1024, 2048, 4096)), *((8, n, n, 128) for n in (512, 2048)),
    *((32, 512, 512, k) for k in (128, 512)), (1, 1280, 10_240, 8192), (1, 2500, 8192, 8192),
    (1, 625, 8192, 8192), (1, 10_000, 8192, 1024), (1, 10_000, 1024, 8192), (4, 1024, 4096, 4096),
    (16, 256, 2048, 2048), (2, 4096, 4096, 512), (1, 8192, 1024, 8192), (1, 3000, 3000, 3000),
)  # fmt: skip
# (batch, heads, kv_heads, head_dim, q_len, kv_len, causal)
ATTENTIONS = (
    (1, 16, 16, 64, 4096, 4096, True), (1, 16, 16, 128, 4096, 4096, True),
    (1, 16, 16, 128, 8192, 8192, True), (1, 16, 4, 128, 8192, 8192, True),
    (4, 16, 16, 128, 2048, 2048, True), (1, 16, 16, 128, 8192, 8192, False),
    (1, 8, 8, 256, 4096, 4096, True), (1, 8, 8, 256, 4096, 4096, False),
    (1, 16, 16, 64, 8192, 8192, False), (2, 32, 8, 128, 4096, 4096, True),
)  # fmt: skip
L2_MEGABYTES = (4, 8, 16, 24, 32, 40, 48, 64, 96, 128, 256, 512)
LINK_BYTES = tuple(4**i for i in range(6, 15))


@dataclass(frozen=True)
class Measured:
    """The results of one run of the microbenchmarks (tag: measured).

    Attributes:
      device: kind of the device. devices: number of devices, over all nodes.
      gemms: matrix products, as rows like the published ones.
      collectives: likewise, inside nodes, between nodes and of all devices.
      attention: fused attention, as rows like the published ones; () where the backend has none.
      copy_bytes_per_s: bytes read and written per second, for an array far larger than the caches.
      sweep: (megabytes, bytes/s) of repeated additions in place, by size of the array.
      launch_s: added time per small kernel in a program.
      idle_w, busy_w: power before, and during, large products; None without NVML.
      nodes: number of nodes that the devices are on.
    """

    device: str
    devices: int
    gemms: tuple[MeasuredGemm, ...]
    collectives: tuple[MeasuredCollective, ...]
    attention: tuple[MeasuredAttention, ...]
    copy_bytes_per_s: float
    sweep: tuple[tuple[float, float], ...]
    launch_s: float
    idle_w: float | None
    busy_w: float | None
    nodes: int = 1


def measure_device(
    gpu: str,
    *,
    shapes: Sequence[tuple[int, int, int, int]] = SHAPES,
    attentions: Sequence[tuple] = ATTENTIONS,
    megabytes: Sequence[float] = L2_MEGABYTES,
    link_bytes: Sequence[int] = LINK_BYTES,
    nodes: Nodes | None = None,
    on_progress: Progress,
) -> Measured:
    """Run all microbenchmarks: links on all processes' devices, the others on this one's first.

    Args:
      gpu: name of the GPU, for the rows.
      shapes: (batch, m, n, k) of the matrix products.
      attentions: (batch, heads, kv_heads, head_dim, q_len, kv_len, causal) of the attention calls.
      megabytes: sizes of the arrays that sweep the caches.
      link_bytes: sizes of the collectives.
      nodes: the devices of each node, as `measure_links` takes them.
      on_progress: called with one line per group of measurements.

    Raises:
      ValueError: the nodes have different numbers of devices.

    Cost: minutes, most of them compiling.
    """
    nodes = nodes_at_hand() if nodes is None else nodes
    device = jax.local_devices()[0]
    idle = read_power()
    gemms = []
    for number, shape in enumerate(shapes, 1):
        if number % 10 == 1:
            on_progress(f"products: {number} of {len(shapes)}")
        gemms.append(MeasuredGemm("here", gpu, "bfloat16", *shape, seconds=_product(*shape)))
    busy = _busy_power()
    on_progress("attention")
    attention = [found for a in attentions if (found := _attention(gpu, *a)) is not None]
    on_progress("copies and caches")
    sweep = tuple((mb, _sweep(mb)) for mb in megabytes)
    copy = _copy(min(2 << 30, int(8 * max(megabytes) * 1e6)))
    on_progress("launches")
    launch = _launch()
    collectives: list[MeasuredCollective] = []
    count = sum(map(len, nodes))
    if count > 1:
        wait_for_all("collectives")
        collectives = measure_links(gpu, link_bytes, nodes, on_progress=on_progress)
    return Measured(
        device.device_kind, count, tuple(gemms), tuple(collectives), tuple(attention),
        copy, sweep, launch, idle, busy, len(nodes),
    )  # fmt: skip


def _product(batch: int, m: int, n: int, k: int) -> float:
    """Time a matrix product of random data: products of zeros draw less power and run faster."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (batch, m, k), jnp.bfloat16)
    w = jax.random.normal(keys[1], (batch, k, n), jnp.bfloat16)

    @functools.partial(jax.jit, static_argnums=2)
    def run(x, w, rounds):
        def body(_, carry):
            x, _ = carry
            y = jnp.einsum("bmk,bkn->bmn", x, w)
            # The next product depends on this result, or XLA would compute the product only once.
            return x.at[:, :1, :1].add(y[:, :1, :1] * jnp.bfloat16(1e-8)), y

        start = jnp.zeros((batch, m, n), jnp.bfloat16)
        return lax.fori_loop(0, rounds, body, (x, start))

    return seconds_each(lambda rounds: lambda: run(x, w, rounds))


def _attention(
    gpu: str, batch: int, heads: int, kv_heads: int, head_dim: int, q_len: int, kv_len: int,
    causal: bool,
) -> MeasuredAttention | None:  # fmt: skip
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (batch, q_len, heads, head_dim), jnp.bfloat16)
    k, v = (jax.random.normal(key, (batch, kv_len, kv_heads, head_dim), jnp.bfloat16)
            for key in keys[1:])  # fmt: skip

    @functools.partial(jax.jit, static_argnums=3)
    def run(q, k, v, rounds):
        def body(_, q):
            return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")

        return lax.fori_loop(0, rounds, body, q)

    try:
        each = seconds_each(lambda rounds: lambda: run(q, k, v, rounds))
    except (RuntimeError, ValueError, NotImplementedError):
        return None  # no fused attention for this width or device
    return MeasuredAttention(
        "here", gpu, "cudnn", "bfloat16", batch, heads, kv_heads, head_dim, head_dim, q_len, kv_len,
        causal, backward=False, window=kv_len, seconds=each,
    )  # fmt: skip


def _copy(n_bytes: int) -> float:
    x = jnp.ones((n_bytes // 4,), jnp.float32)

    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
    def run(x, rounds):
        return lax.fori_loop(0, rounds, lambda _, x: x * jnp.float32(1.0000001), x)

    box = [x]

    def loop(rounds):
        def call():
            box[0] = run(box[0], rounds)
            return box[0]

        return call

    return 2.0 * n_bytes / seconds_each(loop, first=2)


def _sweep(megabytes: float) -> float:
    """Measure the rate of a copy within an array that may stay in the cache."""
    return _copy(int(megabytes * 1e6) // 2)


def _launch() -> float:
    """Measure the seconds per launch in a chain of small kernels that cannot be fused."""

    @functools.partial(jax.jit, static_argnums=1)
    def run(x, rounds):
        return lax.fori_loop(0, rounds, lambda i, x: x.at[i % 8].add(jnp.float32(1)), x)

    x = jnp.zeros((8,), jnp.float32)
    return seconds_each(lambda rounds: lambda: run(x, rounds), first=64)


def _busy_power() -> float | None:
    """Read the power in watts while large products run; None without NVML."""
    if read_power() is None:
        return None
    x = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)

    @jax.jit
    def run(x):
        return lax.fori_loop(0, 400, lambda _, y: (x @ y) * jnp.bfloat16(0.01), x)

    jax.block_until_ready(run(x))
    pending = run(x)
    time.sleep(0.2)
    watts = read_power()
    jax.block_until_ready(pending)
    return watts
