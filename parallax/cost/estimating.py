"""The cost estimate of a trace: streams of kernels, of collectives and of async copies."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from parallax.cost.attention import attention_seconds
from parallax.cost.collectives import collective_seconds
from parallax.cost.gemm import gemm_seconds
from parallax.cost.links import crosses_nodes
from parallax.cost.rates import Rates
from parallax.cost.recent import Recent
from parallax.hlo.branches import Taken
from parallax.hlo.cudnn import FusedAttention
from parallax.hlo.execution_trace import (
    Call,
    Choice,
    ExecutionTrace,
    Gemm,
    Kernel,
    Loop,
    Send,
    Start,
    Step,
    Wait,
)
from parallax.meshes.cluster import Cluster

# Kernel efficiency of hand-written kernels, as a share of the rate of large products. Assumed until
# a GPU has run ours; it is the target of attention at head_dim 512.
KERNEL_EFFICIENCY = 0.6
# Share of the float32 rate that convolutions outside the tensor cores reach; assumed.
DIRECT_EFFICIENCY = 0.5
_INDEX_BYTES = 8  # largest scalar that says where a slice begins


@dataclass(frozen=True)
class Cost:
    """The cost of a piece of work on one device.

    Attributes:
      seconds: time from start to end.
      terms: parts of `seconds`, in seconds, that add up to it: matrix products, attention, memory,
        host copies, launches, exposed communication.
      communication_s: time of all collectives, hidden or not.
      flops, memory_bytes, link_bytes: work done, for the energy.
      network_s: time of the collectives that cross nodes.
      to_host_bytes, from_host_bytes: bytes copied over PCIe in each direction.
    """

    seconds: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    communication_s: float = 0.0
    flops: float = 0.0
    memory_bytes: float = 0.0
    link_bytes: float = 0.0
    network_s: float = 0.0
    to_host_bytes: float = 0.0
    from_host_bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        names = dict.fromkeys([*self.terms, *other.terms])
        return Cost(
            self.seconds + other.seconds,
            {n: self.terms.get(n, 0.0) + other.terms.get(n, 0.0) for n in names},
            self.communication_s + other.communication_s,
            self.flops + other.flops,
            self.memory_bytes + other.memory_bytes,
            self.link_bytes + other.link_bytes,
            self.network_s + other.network_s,
            self.to_host_bytes + other.to_host_bytes,
            self.from_host_bytes + other.from_host_bytes,
        )

    def times(self, n: float) -> "Cost":
        return Cost(
            self.seconds * n, {name: s * n for name, s in self.terms.items()},
            self.communication_s * n, self.flops * n, self.memory_bytes * n, self.link_bytes * n,
            self.network_s * n, self.to_host_bytes * n, self.from_host_bytes * n,
        )  # fmt: skip

    @property
    def exposed_s(self) -> float:
        """The seconds of communication that nothing overlaps."""
        return self.terms.get("exposed communication", 0.0)

    @property
    def exposed_between_nodes_s(self) -> float:
        """The seconds of exposed communication between nodes, as if all were exposed alike."""
        if not self.communication_s:
            return 0.0
        return self.exposed_s * min(1.0, self.network_s / self.communication_s)

    @property
    def hidden_s(self) -> float:
        """The seconds of communication behind kernels."""
        return max(0.0, self.communication_s - self.exposed_s)


def estimate_cost(
    work: ExecutionTrace,
    cluster: Cluster,
    rates: Rates,
    *,
    resident: Mapping[str, float] | None = None,
    loops_reuse_cache: bool = False,
) -> Cost:
    """Estimate the cost of one run on a device of the cluster.

    Args:
      work: execution trace of a program.
      cluster: the GPUs and their interconnect.
      rates: cost model constants of the GPU.
      resident: array -> bytes of it that are in the L2 cache whenever a computation starts; None
        starts every computation with an empty cache.
      loops_reuse_cache: arrays that a loop passes on unchanged may still be in the L2 cache in its
        next iteration. The shipped constants are fitted without it.
    """
    return _Clock(work, cluster, rates, resident or {}, loops_reuse_cache).of(work.entry)


def part_costs(
    work: ExecutionTrace, names: Iterable[str], cluster: Cluster, rates: Rates
) -> dict[str, Cost]:
    """Estimate the cost of one execution of each of some computations of a trace."""
    clock = _Clock(work, cluster, rates)
    return {name: clock.of(name) for name in names}


def kernel_costs(
    work: ExecutionTrace, cluster: Cluster, rates: Rates
) -> dict[str, tuple[float, float]]:
    """Estimate the executions and seconds of all launches, by the op_name in the Python program.

    A branch counts its more expensive side. Launch gaps are included, caches are left out.
    """
    clock, costs = _Clock(work, cluster, rates), {}
    for kernel, times in work.launches(lambda sides: max(sides, key=lambda b: clock.of(b).seconds)):
        name = kernel.op_name or kernel.name
        count, seconds = costs.get(name, (0.0, 0.0))
        each = kernel_cost(kernel, cluster.gpu.sm_count, rates).seconds
        costs[name] = count + times, seconds + times * each
    return costs


def kernel_cost(kernel: Kernel, sm_count: int, rates: Rates, in_l2: float = 0.0) -> Cost:
    """Estimate the cost of one launch, of whose bytes `in_l2` are in the L2 cache."""
    host = kernel.to_host_bytes + kernel.from_host_bytes
    if host:  # which of its arrays are the host's is not known here, so none is found in the cache
        in_l2 = 0.0
    far = kernel.n_bytes - in_l2 - host
    cost = _on_device(kernel, sm_count, rates, far, in_l2)
    if not host:
        return cost
    # PCIe moves bytes in both directions at once, beside the device's memory.
    copying = max(kernel.to_host_bytes, kernel.from_host_bytes) / rates.host_bytes_per_s
    waiting = Cost()
    if (more := copying + rates.launch_s - cost.seconds) > 0:
        waiting = Cost(more, {"host copies": more})
    return replace(
        cost + waiting, to_host_bytes=kernel.to_host_bytes, from_host_bytes=kernel.from_host_bytes
    )


def _on_device(kernel: Kernel, sm_count: int, rates: Rates, far: float, in_l2: float) -> Cost:
    """Estimate the cost of one launch that moves `far` bytes through memory."""
    moving = far / rates.memory_bytes_per_s + in_l2 / rates.l2_bytes_per_s
    if kernel.gemms:
        term, size = "matrix products", moving * rates.memory_bytes_per_s
        # The products run one after the other, while the bytes of all of them are moved.
        alone = sum(_product_seconds(gemm, sm_count, rates, 0.0) for gemm in kernel.gemms)
        beside = max(_product_seconds(gemm, sm_count, rates, size) for gemm in kernel.gemms)
        seconds = max(alone, beside)
        return _launched(term, seconds, rates, sum(g.flops for g in kernel.gemms), far)
    if kernel.attention is not None:
        flops = kernel.attention.flops
        seconds = max(_fused_seconds(kernel.attention, sm_count, rates), moving)
        return Cost(seconds, {"attention": seconds}, flops=flops, memory_bytes=far)
    if kernel.flops:
        rate = KERNEL_EFFICIENCY * rates.gemm_rates("f16").flops_per_s
        seconds = max(kernel.flops / rate, moving)
        term = "matrix products" if kernel.computes == "products" else "attention"
        return _launched(term, seconds, rates, kernel.flops, far)
    return _launched("memory", moving, rates, 0.0, far)


def _product_seconds(gemm: Gemm, sm_count: int, rates: Rates, n_bytes: float) -> float:
    own = rates.gemm_rates(gemm.dtype)
    tiled = gemm_seconds(own, sm_count, gemm.batch, gemm.m, gemm.n, gemm.k, n_bytes)
    if not gemm.is_convolution:
        return tiled
    # Groups of few features leave tiles empty: a library then convolves outside the tensor cores.
    rate = DIRECT_EFFICIENCY * rates.gemm_rates("f32").flops_per_s
    direct = own.start_s + max(gemm.flops / rate, n_bytes / own.bytes_per_s)
    return min(tiled, direct)


def _fused_seconds(call: FusedAttention, sm_count: int, rates: Rates) -> float:
    """Estimate the seconds of a library's fused attention, each head with keys of its own."""
    return attention_seconds(
        rates.attention, sm_count, rates.memory_bytes_per_s, batch=call.batch, heads=call.heads,
        kv_heads=call.heads, q_len=call.q_len, kv_len=call.kv_len, head_dim=call.head_dim,
        causal=call.visible < 1, backward=call.products > 2,
    )  # fmt: skip


def _launched(term: str, seconds: float, rates: Rates, flops: float, far: float) -> Cost:
    terms = {term: seconds, "launches": rates.launch_s}
    return Cost(seconds + rates.launch_s, terms, flops=flops, memory_bytes=far)


@dataclass
class _Clock:
    """The estimate of one trace's computations, each worked out once."""

    work: ExecutionTrace
    cluster: Cluster
    rates: Rates
    resident: Mapping[str, float] = field(default_factory=dict)
    loops_reuse_cache: bool = False
    known: dict[str, Cost] = field(default_factory=dict)

    def of(self, name: str) -> Cost:
        """Estimate the cost of one execution of a computation."""
        if name not in self.known:
            self.known[name] = self.run(self.work.steps[name], self.cache())
        return self.known[name]

    def cache(self) -> Recent:
        recent = Recent(self.rates.l2_share * self.cluster.gpu.l2_bytes)
        for name, size in self.resident.items():
            recent.touch(name, size)
        return recent

    def run(self, steps: tuple[Step, ...], cache: Recent) -> Cost:
        total, exposed = Cost(), 0.0
        wire_free = 0.0
        copies_free: dict[str, float] = {"memory": 0.0, "to host": 0.0, "from host": 0.0}
        finish: dict[str, tuple[float, str]] = {}
        now = 0.0
        sm_count = self.cluster.gpu.sm_count
        for step in steps:
            if isinstance(step, Kernel):
                cost = kernel_cost(step, sm_count, self.rates, cache.hits(step))
                total += cost
                now += cost.seconds
            elif isinstance(step, Send):
                seconds = collective_seconds(step.collective, self.cluster, self.rates)
                done = max(now, wire_free) + seconds
                total += self.sent(step, seconds)
                exposed += done - now
                now = wire_free = done
            elif isinstance(step, Start):
                if isinstance(step.what, Send):
                    seconds = collective_seconds(step.what.collective, self.cluster, self.rates)
                    wire_free = max(now, wire_free) + seconds
                    finish[step.name] = wire_free, "wire"
                    total += self.sent(step.what, seconds)
                elif step.what.gemms or step.what.attention or step.what.flops:
                    # Products on another stream share the SMs: no faster than one after another.
                    cost = kernel_cost(step.what, sm_count, self.rates)
                    total += cost
                    now += cost.seconds
                else:
                    cost = kernel_cost(step.what, sm_count, self.rates)
                    stream = _copy_stream(step.what)
                    copies_free[stream] = max(now, copies_free[stream]) + cost.seconds
                    finish[step.name] = copies_free[stream], stream
                    total += replace(cost, seconds=0.0, terms={})
            elif isinstance(step, Wait):
                done, stream = finish.pop(step.name, (now, "wire"))
                if done > now:
                    if stream == "wire":
                        exposed += done - now
                    else:
                        term = "memory" if stream == "memory" else "host copies"
                        total += Cost(0.0, {term: done - now})
                    now = done
            else:
                cost = self.nested(step, cache)
                total += cost
                now += cost.seconds
                # Its collectives share the link with those already in flight.
                wire_free += cost.communication_s if wire_free > now - cost.seconds else 0.0
        # One link and one memory: work that overlaps does not double their bandwidth.
        wired = (done for done, stream in finish.values() if stream == "wire")
        sent = max([now, total.communication_s, *wired])
        exposed += sent - now
        end = max([sent, *(done for done, _ in finish.values())])
        terms = dict(total.terms)
        if exposed:
            terms["exposed communication"] = terms.get("exposed communication", 0.0) + exposed
        end = max(end, total.memory_bytes / self.rates.memory_bytes_per_s)
        if end > sent:
            terms["memory"] = terms.get("memory", 0.0) + end - sent
        copied = max(total.to_host_bytes, total.from_host_bytes) / self.rates.host_bytes_per_s
        if copied > end:
            terms["host copies"] = terms.get("host copies", 0.0) + copied - end
            end = copied
        return replace(total, seconds=end, terms=terms)

    def sent(self, step: Send, seconds: float) -> Cost:
        crosses = crosses_nodes(step.collective, self.cluster)
        return Cost(
            communication_s=seconds, link_bytes=step.collective.wire_bytes,
            network_s=seconds if crosses else 0.0,
        )  # fmt: skip

    def iterations(self, loop: Loop, before: Recent) -> Cost:
        """Estimate the cost of all executions of a loop's body."""
        if not (self.loops_reuse_cache and loop.held and loop.count > 1):
            return self.of(loop.body).times(loop.count)
        body, cache = self.work.steps[loop.body], self.cache()
        cache.take(loop.held, before)
        first = self.run(body, cache)
        again, same = self.cache(), _read_alike(body, loop.held)
        again.take(((n, n, cache.held.get(n, 0.0)) for n in same), cache)
        return first + self.run(body, again).times(loop.count - 1)

    def nested(self, step: Step, cache: Recent) -> Cost:
        if isinstance(step, Loop):
            cost = self.iterations(step, cache) + self.of(step.condition).times(step.count)
            if step.known:
                return cost
            synchronising = self.rates.loop_s * step.count
            return cost + Cost(synchronising, {"launches": synchronising})
        if isinstance(step, Choice):
            sides = [self.of(name) for name in step.branches]
            if step.taken:
                cost = _of_known_sides(sides, step.taken)
                return cost + Cost(self.rates.loop_s, {"launches": self.rates.loop_s})
            cost = max(sides, key=lambda c: c.seconds)
            # The link may be as busy as on the side that sends more.
            cost = replace(cost, communication_s=max(c.communication_s for c in sides))
            return cost + Cost(self.rates.loop_s, {"launches": self.rates.loop_s})
        assert isinstance(step, Call)
        return self.of(step.name)


def _of_known_sides(sides: list[Cost], taken: tuple[Taken, ...]) -> Cost:
    """Estimate the mean cost of an iteration, given how often each side of a branch is taken.

    An iteration takes as long as the longest side that any device takes in it; the work is that of
    a device's own sides.
    """
    longest = Counter(
        max((n for n, t in enumerate(taken) if iteration in t.iterations),
            key=lambda n: sides[n].seconds)
        for iteration in range(taken[0].of)
    )  # fmt: skip
    time = sum((sides[n].times(count / taken[0].of) for n, count in longest.items()), Cost())
    own = [side.times(float(t.executions)) for side, t in zip(sides, taken, strict=True)]
    work = sum(own, Cost())
    return replace(
        time, flops=work.flops, memory_bytes=work.memory_bytes, link_bytes=work.link_bytes,
        to_host_bytes=work.to_host_bytes, from_host_bytes=work.from_host_bytes,
    )  # fmt: skip


def _copy_stream(kernel: Kernel) -> str:
    """Return the stream of an async copy: each direction over PCIe has its own."""
    if kernel.to_host_bytes:
        return "to host"
    return "from host" if kernel.from_host_bytes else "memory"


def _read_alike(steps: tuple[Step, ...], held: tuple[tuple[str, str, float], ...]) -> list[str]:
    """Return the unchanged arrays of which every iteration of a loop reads the same part.

    That is the whole array, or a slice at indices that are unchanged too.
    """
    sizes, other = {name: size for name, _, size in held}, set()
    for step in steps:
        if isinstance(step, Kernel):
            indices = [name for name, size in step.reads if size <= _INDEX_BYTES]
            if not all(name in sizes for name in indices):
                other |= {name for name, size in step.reads if size < sizes.get(name, 0.0)}
    return [name for name in sizes if name not in other]
