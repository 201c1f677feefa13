"""Laws of whole programs and models: none beats its roofline, and more work is never faster."""

import dataclasses
import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallax.analytic import estimate
from parallax.bounds import wire_bytes
from parallax.cost import estimate_cost, rates_of
from parallax.cost.links import all_link_bytes
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
from tests.cost.drawn import NODE_KINDS, SLACK, few, upto

WHERE = cluster("h100_2x8")
ALL = (tuple(range(16)),)
ARRAYS = ("a", "b", "c")


PEAKS = {
    "f8": "float8", "s8": "int8", "f16": "float16", "tf32": "tensorfloat32", "f32": "float32",
    "f64": "float64",
}  # fmt: skip


@st.composite
def kernels(draw):
    """A copy, products, convolutions, attention or a hand-written kernel; some use host memory."""
    reads = draw(st.lists(st.tuples(st.sampled_from(ARRAYS), upto(26).map(float)), max_size=2))
    name, written = draw(st.sampled_from(ARRAYS)), float(draw(upto(26)))
    more = {}
    if draw(st.integers(0, 3)) == 0:
        from_host = float(draw(upto(24)))
        reads.append(("of the host", from_host))
        more = {
            "from_host_bytes": from_host,
            "to_host_bytes": draw(st.sampled_from([0.0, written])),
        }
    kind = draw(st.sampled_from(["products", "products", "copy", "attention", "by hand"]))
    if kind == "products":
        more["gemms"] = tuple(draw(st.lists(st.builds(
            Gemm, upto(3), upto(10), upto(10), upto(10), st.sampled_from(sorted(PEAKS)),
            st.booleans(),
        ), max_size=2)))  # fmt: skip
    elif kind == "attention":
        batch, heads, q_len, kv_len, width = draw(st.tuples(*[upto(6)] * 4, upto(9)))
        more["attention"] = FusedAttention(batch, heads, q_len, kv_len, width, 1.0, "bf16", 2)
    elif kind == "by hand":
        more["flops"] = float(draw(upto(36)))
    return Kernel(name, tuple(reads), written, **more)


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
    return estimate_cost(work, WHERE, rates_of("h100")).seconds


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


@pytest.mark.full
@few
@given(works())
def test_no_program_beats_its_roofline(work):
    cost = estimate_cost(work, WHERE, rates_of("h100"))
    assert sum(cost.terms.values()) == pytest.approx(cost.seconds, rel=1e-9, abs=1e-15)
    assert min(cost.terms.values(), default=0.0) >= 0
    assert cost.seconds * SLACK >= cost.flops / WHERE.gpu.bf16_flops
    assert cost.seconds * SLACK >= cost.memory_bytes / WHERE.gpu.hbm_bytes_per_s
    assert cost.seconds * SLACK >= cost.communication_s
    hidden = {"memory", "host copies"} & cost.terms.keys()
    assert cost.communication_s >= cost.exposed_s * (1 - 1e-9) or hidden


@few
@given(st.sampled_from(sorted(GPUS)), st.sampled_from(["h100_2x8"]), works())
def test_nothing_beats_the_peak_rate_of_any_unit_or_link(gpu, where, work):
    """Every unit and link on its own, counted from the trace beside the cost model."""
    target = dataclasses.replace(cluster(where), gpu=GPUS[gpu])
    found = estimate_cost(work, target, rates_of(gpu)).seconds * SLACK
    gpu_ = target.gpu
    for take in (0, -1):  # either side of every branch
        launches = list(work.launches(lambda sides, take=take: sides[take]))
        busy = sum(
            times * gemm.flops / gpu_.peak_flops(PEAKS[gemm.dtype])
            for kernel, times in launches
            for gemm in kernel.gemms
        )
        busy += sum(
            times * (k.flops + (k.attention.flops if k.attention else 0.0)) / gpu_.bf16_flops
            for k, times in launches
        )
        assert found >= busy
        for side in ("to_host_bytes", "from_host_bytes"):
            copied = sum(times * getattr(k, side) for k, times in launches)
            assert found >= copied / gpu_.pcie_bytes_per_s
        # Every byte passes at least the L2 cache, and the host's bytes do not.
        local = sum(times * (k.n_bytes - k.to_host_bytes - k.from_host_bytes)
                    for k, times in launches)  # fmt: skip
        assert found >= local / gpu_.l2_bytes_per_s


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


@pytest.mark.full
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


@pytest.mark.full
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
