"""Laws of the model: nothing beats its roofline, and more work is never faster."""

import dataclasses
import functools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.analytic import estimate
from parallax.bounds import wire_bytes
from parallax.cost import measurements, price, rates_of
from parallax.cost.collectives import collective_seconds, exchange_seconds, send_seconds
from parallax.cost.gemm import gemm_seconds
from parallax.cost.links import all_link_bytes, least_link_bytes
from parallax.cost.pricing import attention_rate, kernel_cost
from parallax.hlo.collectives import Collective
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
    Wait,
)
from parallax.meshes.cluster import cluster
from parallax.meshes.gpus import GPUS
from parallax.models.config import ModelConfig
from parallax.models.flops import model_flops
from parallax.programs.steps import make_step
from parallax.search.candidates import candidates
from parallax.workload import Workload

PEAK = {
    "s8": "int8", "f16": "float16", "bf16": "bfloat16", "tf32": "tensorfloat32", "f32": "float32",
    "f64": "float64",
}  # fmt: skip
ITEM = {"s8": 1, "f16": 2, "bf16": 2, "tf32": 4, "f32": 4, "f64": 8}
NODE_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
SLACK = 1 + 1e-9  # of sums in another order

gpus = st.sampled_from(sorted(GPUS))
few = settings(max_examples=300)


def upto(exponent):
    """Whole numbers, small and large ones alike."""
    return st.floats(0, exponent).map(lambda x: int(2**x))


def least_seconds(gpu, n_bytes, in_l2):
    return n_bytes / (gpu.l2_bytes_per_s if in_l2 else gpu.hbm_bytes_per_s)


# --- products, copies, attention ---


@few
@given(gpus, st.sampled_from(sorted(PEAK)), upto(5), upto(15), upto(15), upto(15), st.booleans())
def test_no_product_beats_its_roofline(name, dtype, batch, m, n, k, in_l2):
    gpu, rates = GPUS[name], rates_of(name)
    gemm = Gemm(batch, m, n, k, dtype)
    a, b, c = (float(batch * x * ITEM[dtype]) for x in (m * k, k * n, m * n))
    kernel = Kernel("x", (("a", a), ("b", b)), c, (gemm,))
    hit = a + b if in_l2 and a + b <= gpu.l2_bytes else 0.0
    cost = kernel_cost(kernel, gpu.sm_count, rates, hit)
    assert cost.seconds >= gemm.flops / gpu.peak_flops(PEAK[dtype])
    assert cost.seconds >= least_seconds(gpu, kernel.n_bytes - hit, False)
    assert cost.seconds >= least_seconds(gpu, kernel.n_bytes, True)
    both = dataclasses.replace(kernel, gemms=(gemm, gemm))
    twice = kernel_cost(both, gpu.sm_count, rates, hit).seconds
    assert twice >= cost.seconds
    assert twice >= 2 * gemm.flops / gpu.peak_flops(PEAK[dtype])


@few
@given(gpus, st.sampled_from(sorted(PEAK)), st.tuples(upto(5), upto(15), upto(15), upto(15)),
       st.integers(0, 3), upto(12))  # fmt: skip
def test_a_larger_product_is_never_faster(name, dtype, sizes, which, more):
    gpu, rates = GPUS[name], rates_of(name).gemm_rates(dtype)

    def seconds(batch, m, n, k):
        moved = ITEM[dtype] * batch * (m * k + k * n + m * n)
        return gemm_seconds(rates, gpu.sm_count, batch, m, n, k, moved)

    larger = [s + more * (i == which) for i, s in enumerate(sizes)]
    assert seconds(*larger) * SLACK >= seconds(*sizes)


@pytest.mark.parametrize("name", GPUS)
def test_a_deeper_product_is_never_faster_where_k_can_be_cut(name):
    gpu, depths = GPUS[name], [d + e for d in (128, 256, 512, 1024, 2048) for e in (-1, 0, 1)]
    for dtype, rates in rates_of(name).gemm.items():
        for m, n in ((1, 64), (16, 512), (64, 64), (256, 4096), (300, 300)):
            found = [gemm_seconds(rates, gpu.sm_count, 1, m, n, k, 0.0) for k in depths]
            assert found == sorted(found), (dtype, m, n)


@pytest.mark.parametrize("name", GPUS)
def test_wider_attention_is_never_faster(name):
    found = [width / attention_rate(rates_of(name), width) for width in range(1, 1100)]
    assert found == sorted(found)


@few
@given(gpus, upto(36), upto(36), upto(20))
def test_no_copy_beats_memory_and_more_bytes_are_never_faster(name, read, written, more):
    gpu, rates = GPUS[name], rates_of(name)
    copy = Kernel("c", (("a", float(read)),), float(written))
    hit = float(read) if read <= gpu.l2_bytes else 0.0
    for in_l2 in (0.0, hit):
        cost = kernel_cost(copy, gpu.sm_count, rates, in_l2)
        assert cost.seconds >= least_seconds(gpu, copy.n_bytes - in_l2, False)
        assert cost.seconds >= least_seconds(gpu, copy.n_bytes, True)
        longer = dataclasses.replace(copy, written_bytes=float(written + more))
        assert kernel_cost(longer, gpu.sm_count, rates, in_l2).seconds >= cost.seconds


@few
@given(gpus, st.lists(upto(7), min_size=4, max_size=4), upto(10.5), st.integers(0, 4))
def test_attention_has_a_roofline_and_grows(name, sizes, head_dim, which):
    gpu, rates = GPUS[name], rates_of(name)

    def cost(batch, heads, q, kv, width):
        shape = FusedAttention(batch, heads, q, kv, width, 1.0, "bf16", products=2)
        return kernel_cost(Kernel("a", (), 0.0, attention=shape), gpu.sm_count, rates)

    sizes = [*sizes, head_dim]
    found = cost(*sizes)
    assert found.seconds >= found.flops / gpu.bf16_flops
    assert found.flops == 4.0 * math.prod(sizes)
    assert cost(*(s + (i == which) for i, s in enumerate(sizes))).seconds >= found.seconds
    assert attention_rate(rates, head_dim) <= gpu.bf16_flops


# --- collectives ---


@few
@given(gpus, st.sampled_from(NODE_KINDS), upto(36), st.integers(2, 72), upto(30))
def test_no_collective_in_a_node_beats_its_links(name, kind, size, n, more):
    gpu, rates = GPUS[name], rates_of(name)
    sent = wire_bytes(kind, n, size)
    least = min(sent, size) if kind == "all-reduce" else sent  # a switch may sum
    found = exchange_seconds(kind, size, n, 1, rates)
    assert found >= least / gpu.nvlink_bytes_per_s
    assert exchange_seconds(kind, size + more, n, 1, rates) >= found
    assert exchange_seconds(kind, size, n + 1, 1, rates) >= found


@few
@given(gpus, st.sampled_from(NODE_KINDS), upto(33), st.sampled_from([1, 2, 4, 8]),
       st.integers(2, 16), upto(30), st.floats(0.1, 1.0))  # fmt: skip
def test_no_collective_over_nodes_beats_its_links(name, kind, size, inside, nodes, more, slower):
    where = dataclasses.replace(cluster(f"{name}_{nodes}x8"), gpus_per_node=inside)
    rates = rates_of(name)
    n = inside * nodes
    made = Collective(
        kind, ("x",), n, size, wire_bytes(kind, n, size), 1, "f16", "", groups=(tuple(range(n)),)
    )
    found = collective_seconds(made, where, rates)
    peaks = {"nvlink": where.gpu.nvlink_bytes_per_s, "nic": where.nic_bytes_per_s}
    assert all(found >= b / peaks[k] for k, b in least_link_bytes(made, where).items())
    assert exchange_seconds(kind, size + more, inside, nodes, rates) >= found
    assert exchange_seconds(kind, size, inside, nodes + 1, rates) * SLACK >= found
    for link in (kind, "network"):
        late = dataclasses.replace(
            rates.links[link], bytes_per_s=rates.links[link].bytes_per_s * slower
        )
        worse = dataclasses.replace(rates, links={**rates.links, link: late})
        assert exchange_seconds(kind, size, inside, nodes, worse) >= found


@few
@given(gpus, upto(36), upto(30))
def test_no_message_beats_its_link(name, size, more):
    gpu, rates = GPUS[name], rates_of(name)
    for link, peak in (("p2p", gpu.nvlink_bytes_per_s), ("network", gpu.nic_bytes_per_s)):
        found = send_seconds(rates.links[link], size)
        assert found >= size / peak
        assert send_seconds(rates.links[link], size + more) >= found


# --- what was measured ---


def test_no_recorded_measurement_beats_its_roofline():
    item = {"bfloat16": 2, "float16": 2, "tensorfloat32": 4, "int8": 1}
    for row in measurements.gemms():
        gpu = GPUS[row.gpu]
        moved = item[row.dtype] * row.batch * (row.m * row.k + row.k * row.n + row.m * row.n)
        flops = 2.0 * row.batch * row.m * row.n * row.k
        assert row.seconds >= flops / gpu.peak_flops(row.dtype), row
        assert row.seconds >= least_seconds(gpu, moved, moved <= gpu.l2_bytes), row
    for row in measurements.attentions():
        gpu = GPUS[row.gpu]
        visible = row.q_len * (row.kv_len - (row.q_len - 1) / 2 if row.causal else row.kv_len)
        flops = 4.0 * row.batch * row.heads * visible * row.head_dim
        kv = 2.0 * item[row.dtype] * row.batch * row.kv_heads * row.kv_len * row.head_dim
        assert row.seconds >= flops / gpu.peak_flops(row.dtype), row
        assert row.seconds >= least_seconds(gpu, kv, kv <= gpu.l2_bytes), row
    for row in measurements.collectives():
        n, gpu = row.devices, GPUS[row.gpu]
        hlo = "collective-permute" if row.kind == "p2p" else row.kind
        sent = wire_bytes(hlo, n, row.bytes)
        sent = min(sent, row.bytes) if row.kind == "all-reduce" else sent
        assert row.nodes > 1 or row.seconds >= sent / gpu.nvlink_bytes_per_s, row
        if row.nodes > 1 and row.kind in ("p2p", "all-reduce"):
            # Each card carries its share of the array at least once, however it is summed.
            share = row.bytes / (1 if row.kind == "p2p" else n // row.nodes)
            assert row.seconds >= share / gpu.nic_bytes_per_s, row


# --- whole programs ---

WHERE = cluster("h100_2x8")
ALL = (tuple(range(16)),)
ARRAYS = ("a", "b", "c")


@st.composite
def kernels(draw):
    gemms = tuple(draw(st.lists(st.builds(
        Gemm, upto(3), upto(10), upto(10), upto(10), st.sampled_from(["f16", "tf32"])
    ), max_size=2)))  # fmt: skip
    reads = draw(st.lists(st.tuples(st.sampled_from(ARRAYS), upto(26).map(float)), max_size=2))
    return Kernel(draw(st.sampled_from(ARRAYS)), tuple(reads), float(draw(upto(26))), gemms)


@st.composite
def sends(draw):
    kind, size = draw(st.sampled_from(NODE_KINDS)), draw(upto(28))
    groups = draw(st.sampled_from([ALL, ((*range(8),), (*range(8, 16),))]))
    n = len(groups[0])
    return Send("s", Collective(kind, ("x",), n, size, wire_bytes(kind, n, size), 1, "f16", "",
                                groups=groups))  # fmt: skip


@st.composite
def works(draw, depth=3):
    """A tree of computations; each calls only ones below it."""
    steps = {}
    for level in range(depth):
        below = [f"c{i}" for i in range(level)]
        found, started = [], []
        for i in range(draw(st.integers(1, 6))):
            kind = draw(st.sampled_from(["kernel", "kernel", "send", "start", "wait", "inner"]))
            if kind == "kernel":
                found.append(draw(kernels()))
            elif kind == "send":
                found.append(draw(sends()))
            elif kind == "start":
                started.append(f"t{i}")
                found.append(Start(f"t{i}", draw(st.one_of(sends(), kernels()))))
            elif kind == "wait" and started:
                found.append(Wait(started.pop(draw(st.integers(0, len(started) - 1)))))
            elif kind == "inner" and below:
                inner = st.sampled_from(below)
                found.append(draw(st.one_of(
                    st.builds(Call, inner),
                    st.builds(Choice, st.just("if"), st.tuples(inner, inner)),
                    st.builds(Loop, st.just("loop"), st.integers(1, 4).map(float), inner, inner,
                              st.booleans()),
                )))  # fmt: skip
        steps[f"c{level}"] = tuple(found)
    return ExecutionTrace(f"c{depth - 1}", steps, 16)


def bigger(what, more, read):
    """The same kernel or send with more bytes, and with more FLOPs.

    Not more bytes of an array that others read: a kernel that waits for its products anyway may
    bring it into the cache for them, and then more bytes are rightly faster.
    """
    if isinstance(what, Send):
        c = what.collective
        size = c.payload_bytes + more
        c = dataclasses.replace(
            c, payload_bytes=size, wire_bytes=wire_bytes(c.kind, c.group_size, size)
        )
        yield Send(what.name, c)
        return
    if what.name not in read:
        yield dataclasses.replace(what, written_bytes=what.written_bytes + more)
    yield dataclasses.replace(what, reads=(*what.reads, ("another", float(more))))
    if what.gemms:
        first, *rest = what.gemms
        for side in ("m", "n", "k"):
            more_of = dataclasses.replace(first, **{side: getattr(first, side) + more})
            yield dataclasses.replace(what, gemms=(more_of, *rest))


def seconds(work):
    return price(work, WHERE, rates_of("h100")).seconds


def changed(work, name, steps):
    return dataclasses.replace(work, steps={**work.steps, name: tuple(steps)})


@pytest.mark.slow
@settings(max_examples=200)
@given(works(), st.data())
def test_more_work_is_never_faster(work, data):
    before = seconds(work)
    name = data.draw(st.sampled_from(sorted(work.steps)))
    steps = work.steps[name]
    at = data.draw(st.integers(0, len(steps)))
    added = data.draw(st.one_of(kernels(), sends()))
    assert seconds(changed(work, name, [*steps[:at], added, *steps[at:]])) * SLACK >= before
    more = data.draw(upto(24))
    kernels_in = [getattr(step, "what", step) for step in steps]
    read = {name for k in kernels_in if isinstance(k, Kernel) for name, _ in k.reads}
    for i, step in enumerate(steps):
        what = step.what if isinstance(step, Start) else step
        if isinstance(what, Kernel | Send):
            for larger in bigger(what, more, read):
                new = dataclasses.replace(step, what=larger) if what is not step else larger
                assert seconds(changed(work, name, [*steps[:i], new, *steps[i + 1 :]])) * SLACK >= (
                    before
                )
        elif isinstance(step, Loop):
            new = dataclasses.replace(step, count=step.count + 1)
            assert seconds(changed(work, name, [*steps[:i], new, *steps[i + 1 :]])) * SLACK >= (
                before
            )


@pytest.mark.slow
@few
@given(works())
def test_no_program_beats_its_roofline(work):
    cost = price(work, WHERE, rates_of("h100"))
    assert sum(cost.terms.values()) == pytest.approx(cost.seconds, rel=1e-9, abs=1e-15)
    assert min(cost.terms.values(), default=0.0) >= 0
    assert cost.seconds * SLACK >= cost.flops / WHERE.gpu.bf16_flops
    assert cost.seconds * SLACK >= cost.memory_bytes / WHERE.gpu.hbm_bytes_per_s
    assert cost.seconds * SLACK >= cost.communication_s
    assert cost.communication_s >= cost.exposed_s * (1 - 1e-9) or "memory" in cost.terms


# --- the closed form of whole models ---


@functools.cache
def _candidates(config, name, batch):
    return tuple(candidates(config, cluster(name), batch))


@st.composite
def cases(draw):
    heads = draw(st.sampled_from([8, 16]))
    experts = draw(st.sampled_from([0, 0, 16]))
    config = ModelConfig(
        name="drawn", num_layers=draw(st.sampled_from([2, 4])), d_model=heads * 64,
        num_heads=heads, num_kv_heads=draw(st.sampled_from([heads, heads // 2])), head_dim=64,
        d_ff=heads * 128, vocab_size=1024, dtype="bfloat16", max_seq_len=1 << 16,
        num_experts=experts,
    )  # fmt: skip
    name = draw(st.sampled_from(["h100_2x8", "h100_nvl16", "a100_2x8", "b200_2x8"]))
    strategy = draw(st.sampled_from(_candidates(config, name, 16)))
    return config, strategy, Workload(16, draw(st.sampled_from([256, 1024]))), cluster(name)


def estimated(config, strategy, workload, where, **options):
    """None where the model cannot be split so."""
    try:
        return estimate(make_step(config, strategy, workload), where, **options)
    except ValueError:
        return None


@pytest.mark.slow
@settings(max_examples=150)
@given(cases())
def test_no_estimate_beats_its_roofline(case):
    config, _, workload, where = case
    found = estimated(*case)
    if found is None:
        return
    needed = model_flops(config, workload.batch, workload.seq_len)
    assert found.cost.seconds >= needed / where.devices / where.gpu.bf16_flops
    cost = found.cost
    assert cost.seconds >= cost.memory_bytes / where.gpu.hbm_bytes_per_s
    assert cost.seconds >= cost.flops / where.gpu.bf16_flops
    assert cost.seconds >= cost.link_bytes / 2 / where.gpu.nvlink_bytes_per_s


@settings(max_examples=100)
@given(cases(), st.floats(0.1, 1.0))
def test_more_to_do_or_slower_links_are_never_faster(case, slower):
    config, strategy, workload, where = case
    found = estimated(*case)
    if found is None:
        return
    rates = rates_of(where.gpu.name)
    links = {
        k: dataclasses.replace(v, bytes_per_s=v.bytes_per_s * slower)
        for k, v in rates.links.items()
    }
    others = {
        "links": estimated(*case, rates=dataclasses.replace(rates, links=links)),
        "seq_len": estimated(config, strategy, Workload(16, workload.seq_len * 2), where),
        "batch": estimated(config, strategy, Workload(32, workload.seq_len), where),
        "skew": estimated(*case, skew=2.0),
    }
    for what, other in others.items():
        assert other is None or other.cost.seconds * SLACK >= found.cost.seconds, what
    assert all_link_bytes((), where) == {"nvlink": 0.0, "nic": 0.0}
