"""Laws of the cost model's parts: nothing beats its roofline, and more is never faster."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.bounds import wire_bytes
from parallax.cost import measurements, rates_for, rates_of
from parallax.cost.collectives import (
    collective_seconds,
    exchange_seconds,
    one_shot_all_reduce_seconds,
    send_seconds,
)
from parallax.cost.estimating import kernel_cost
from parallax.cost.gemm import gemm_seconds
from parallax.cost.links import least_link_bytes
from parallax.cost.rates import BETWEEN_NODES
from parallax.hlo.collectives import Collective
from parallax.hlo.cudnn import FusedAttention
from parallax.hlo.execution_trace import Gemm, Kernel
from parallax.meshes.cluster import cluster, on_network
from parallax.meshes.gpus import GPUS
from parallax.meshes.networks import NETWORKS
from tests.cost.drawn import NODE_KINDS, SLACK, few, upto

PEAK = {
    "s8": "int8", "f16": "float16", "bf16": "bfloat16", "tf32": "tensorfloat32", "f32": "float32",
    "f64": "float64", "f8": "float8",
}  # fmt: skip
ITEM = {"s8": 1, "f8": 1, "f16": 2, "bf16": 2, "tf32": 4, "f32": 4, "f64": 8}

gpus = st.sampled_from(sorted(GPUS))


def least_seconds(gpu, n_bytes, in_l2):
    return n_bytes / (gpu.l2_bytes_per_s if in_l2 else gpu.hbm_bytes_per_s)


# --- products, copies, attention ---


@few
@given(gpus, st.sampled_from(sorted(PEAK)), upto(5), upto(15), upto(15), upto(15), st.booleans(),
       st.booleans())  # fmt: skip
def test_no_product_beats_its_roofline(name, dtype, batch, m, n, k, in_l2, convolves):
    gpu, rates = GPUS[name], rates_of(name)
    gemm = Gemm(batch, m, n, k, dtype, convolves)
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
    rates = rates_of(name).attention
    found = [width / rates.flops_per_s(width) for width in range(1, 1100)]
    assert all(wider * SLACK >= one for one, wider in itertools.pairwise(found))


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
    assert rates.attention.flops_per_s(head_dim) <= gpu.bf16_flops


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
    if kind != "all-reduce" or n + 1 != 8:  # from eight devices on, switches sum
        assert exchange_seconds(kind, size, n + 1, 1, rates) >= found


@few
@given(gpus, st.sampled_from(NODE_KINDS), upto(33), st.sampled_from([1, 2, 4, 8]),
       st.integers(2, 16), upto(30), st.floats(0.1, 1.0),
       st.sampled_from([None, *NETWORKS]))  # fmt: skip
def test_no_collective_over_nodes_beats_its_links(
    name, kind, size, inside, nodes, more, slower, network
):
    where = on_network(cluster(f"{name}_{nodes}x8"), network)
    where = dataclasses.replace(where, gpus_per_node=inside)
    rates = rates_for(where)
    n = inside * nodes
    made = Collective(
        kind, ("x",), n, size, wire_bytes(kind, n, size), 1, "f16", "", groups=(tuple(range(n)),)
    )
    found = collective_seconds(made, where, rates)
    peaks = {"nvlink": where.gpu.nvlink_bytes_per_s, "nic": where.nic_bytes_per_s}
    assert all(found >= b / peaks[k] for k, b in least_link_bytes(made, where).items())
    assert exchange_seconds(kind, size + more, inside, nodes, rates) >= found
    assert exchange_seconds(kind, size, inside, nodes + 1, rates) * SLACK >= found
    for link in (kind, BETWEEN_NODES[kind] if network else "network"):
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


@few
@given(gpus, upto(33), st.integers(2, 8), upto(30))
def test_no_one_shot_sum_beats_its_links_or_is_slower_than_nccls(name, size, n, more):
    gpu, rates = GPUS[name], rates_of(name)
    found = one_shot_all_reduce_seconds(size, n, rates)
    assert found >= min(size, wire_bytes("all-reduce", n, size)) / gpu.nvlink_bytes_per_s
    assert found <= exchange_seconds("all-reduce", size, n, 1, rates)
    assert one_shot_all_reduce_seconds(size + more, n, rates) >= found
    assert one_shot_all_reduce_seconds(size, 1, rates) == 0.0


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
        # Who measured training does not say in how many bits: eight at least.
        dtype, size = ("float8", 1) if row.dtype == "unstated" else (row.dtype, item[row.dtype])
        visible = row.q_len * (row.kv_len - (row.q_len - 1) / 2 if row.causal else row.kv_len)
        visible = min(visible, row.q_len * row.window)
        if row.window == row.kv_len or not row.causal:  # a window's first queries see less
            widths = 3 * row.head_dim + 2 * row.value_dim if row.backward else (
                row.head_dim + row.value_dim)  # fmt: skip
            flops = 2.0 * row.batch * row.heads * visible * widths
            assert row.seconds >= flops / gpu.peak_flops(dtype), row
        widths = row.head_dim + row.value_dim
        kv = float(size * row.batch * row.kv_heads * row.kv_len * widths)
        far = max(0.0, kv - gpu.l2_bytes)  # the rest may be in the cache from the run before
        assert row.seconds >= least_seconds(gpu, far, False), row
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
