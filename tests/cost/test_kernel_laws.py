"""Laws of attention and experts: nothing beats its roofline, and more is never faster."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.cost import measurements, rates_of
from parallax.cost.attention import attention_seconds
from parallax.cost.experts import (
    COMBINE_ITEM,
    DISPATCH_ITEM,
    combine_seconds,
    dispatch_seconds,
    grouped_seconds,
    power_law_skew,
)
from parallax.cost.fitting import predicted_gemms
from parallax.meshes.gpus import GPUS
from tests.cost.drawn import SLACK, few, upto

gpus = st.sampled_from(sorted(GPUS))


def attention(name, **sizes):
    rates, gpu = rates_of(name), GPUS[name]
    return attention_seconds(rates.attention, gpu.sm_count, rates.memory_bytes_per_s, **sizes)


@few
@given(gpus, upto(8), upto(5), upto(4), upto(14), upto(14), upto(9.5),
       st.sampled_from(["forward", "backward", "decode"]), st.booleans())  # fmt: skip
def test_no_attention_beats_its_roofline(
    name, batch, kv_heads, group, q_len, kv_len, head_dim, what, causal
):
    gpu, heads = GPUS[name], kv_heads * group
    backward = what == "backward"
    q_len = 1 if what == "decode" else min(q_len, kv_len) if causal else q_len
    found = attention(
        name, batch=batch, heads=heads, kv_heads=kv_heads, q_len=q_len, kv_len=kv_len,
        head_dim=head_dim, causal=causal, backward=backward,
    )  # fmt: skip
    visible = q_len * (kv_len - (q_len - 1) / 2 if causal else kv_len)
    flops = (10.0 if backward else 4.0) * batch * heads * visible * head_dim
    n_bytes = 4.0 * batch * head_dim * (heads * q_len + kv_heads * kv_len)
    assert found >= flops / gpu.bf16_flops
    # What is left of the call before is in the L2 cache, and all else comes from memory.
    assert found >= (n_bytes - gpu.l2_bytes) / gpu.hbm_bytes_per_s
    assert found >= n_bytes / gpu.l2_bytes_per_s


@few
@given(gpus, st.tuples(upto(7), upto(4), upto(12), upto(12), upto(9.5)), upto(4), upto(12),
       st.integers(0, 4), st.booleans())  # fmt: skip
def test_more_attention_is_never_faster(name, sizes, group, more, which, backward):
    def seconds(batch, kv_heads, q_len, kv_len, head_dim):
        return attention(
            name, batch=batch, heads=kv_heads * group, kv_heads=kv_heads, q_len=q_len,
            kv_len=kv_len, head_dim=head_dim, causal=False, backward=backward,
        )  # fmt: skip

    # A key more may be one for which another SM takes a part of the keys.
    larger = [s + more * (i == which) for i, s in enumerate(sizes)]
    assert seconds(*larger) * 1.01 >= seconds(*sizes)


def test_a_mask_and_a_window_make_attention_faster_and_gradients_take_longer():
    call = dict(batch=4, heads=32, kv_heads=8, q_len=8192, kv_len=8192, head_dim=128)
    for name in GPUS:
        whole, causal = (attention(name, **call, causal=c) for c in (False, True))
        assert 1.7 < whole / causal < 2.05
        assert attention(name, **call, causal=True, window=1024) < 0.4 * causal
        assert 2.2 < attention(name, **call, causal=True, backward=True) / causal < 4.5
        # Heads of queries that share keys are no more work, and read fewer bytes.
        alone = attention(name, **{**call, "kv_heads": 32}, causal=True)
        assert causal <= alone < 1.3 * causal


def test_few_heads_leave_multiprocessors_idle():
    call = dict(batch=1, kv_heads=1, q_len=4096, kv_len=4096, head_dim=128, causal=True)
    for name in GPUS:
        one, many = (attention(name, heads=h, **call) for h in (1, 64))
        assert many < 40 * one


# --- experts ---


@few
@given(gpus, upto(14), upto(13), upto(13), st.sampled_from([(8, 2), (128, 8), (256, 1)]),
       st.sampled_from([1, 2, 8]), st.floats(1.0, 4.0), upto(10))  # fmt: skip
def test_no_experts_beat_their_roofline(name, tokens, hidden, inter, experts, expert, skew, more):
    gpu, rates, (count, top_k) = GPUS[name], rates_of(name).experts.grouped, experts

    def seconds(tokens, skew):
        return grouped_seconds(
            rates, gpu.sm_count, tokens=tokens, hidden=hidden, inter=inter, top_k=top_k,
            experts=count, expert=expert, skew=skew,
        )  # fmt: skip

    found = seconds(tokens, skew)
    rows = tokens * top_k / expert
    assert found >= 6.0 * rows * hidden * inter / gpu.bf16_flops
    # Each expert that has rows is read: no more than there are rows, or experts.
    least = min(count / expert, rows) * 0.6 * 6.0 * hidden * inter
    assert found >= least / gpu.hbm_bytes_per_s
    assert seconds(tokens + more, skew) * SLACK >= found
    assert seconds(tokens, skew + 1) * SLACK >= found


@few
@given(gpus, upto(17), upto(13), st.integers(1, 22), st.integers(4, 24), st.integers(1, 16),
       upto(15))  # fmt: skip
def test_no_dispatch_beats_its_links(name, tokens, hidden, top_k, sms, nodes, more):
    gpu, rates = GPUS[name], rates_of(name).experts
    devices = 8 * (1 - (1 - 1 / 8) ** top_k) * 7 / 8
    others = nodes * (1 - (1 - 1 / nodes) ** top_k) * (1 - 1 / nodes)
    for way, own, item in (
        (dispatch_seconds, rates.dispatch, DISPATCH_ITEM),
        (combine_seconds, rates.combine, COMBINE_ITEM),
    ):
        sizes = dict(tokens=tokens, hidden=hidden, top_k=top_k, sms=sms, nodes=nodes)
        found, row = way(own, **sizes), tokens * hidden * item
        assert found >= devices * row / gpu.nvlink_bytes_per_s
        assert found >= others * row / gpu.nic_bytes_per_s
        for longer in ({"tokens": tokens + more}, {"top_k": top_k + 1}, {"hidden": hidden + more}):
            assert way(own, **{**sizes, **longer}) * SLACK >= found
        assert way(own, **{**sizes, "sms": sms + 1}) <= found


def test_a_power_law_is_a_skew_between_balance_and_one_expert():
    for tokens in (4, 64, 4096):
        for experts, top_k in ((8, 2), (128, 8), (256, 8)):
            mild, steep = (power_law_skew(a, tokens, experts, top_k) for a in (1.01, 1.2))
            assert 1 <= mild <= experts / top_k
            assert 1 <= steep <= experts / top_k
            assert experts < 128 or tokens < 64 or mild <= steep
    # 128 loads between 1 and 3277 rows, nearly log-uniform: the mean is high / ln(high).
    assert power_law_skew(1.01, 4096, 128, 8) == pytest.approx(7.6, rel=0.05)


# --- rows that were measured ---


@pytest.mark.parametrize(("name", "limit"), [("h100", 0.06), ("h200", 0.06), ("b200", 0.075)])
def test_products_are_near_what_was_measured(name, limit):
    rows = [r for r in measurements.gemms() if r.source == "aiconfigurator_gemm" and r.gpu == name]
    modelled = predicted_gemms(rates_of(name).gemm["f16"], rows, GPUS[name].sm_count)
    errors = sorted(abs(m / r.seconds - 1) for m, r in zip(modelled, rows, strict=True))
    assert errors[len(errors) // 2] < limit


def test_a_power_limit_slows_long_runs_alone():
    for name in GPUS:
        for rates in rates_of(name).gemm.values():
            assert 0.85 < rates.sustained_flops_per_s / rates.flops_per_s < 1
    h100 = rates_of("h100").gemm["f16"]
    assert h100.sustained_flops_per_s == pytest.approx(794e12, rel=0.05)


def test_known_calls_of_attention():
    """A wrong unit, a tile or a mask counted twice would be far off these rows."""
    prompts = [r for r in measurements.attentions() if r.source == "aiconfigurator_prefill"]
    steps = [r for r in measurements.attentions() if r.source == "aiconfigurator_decode"]
    for rows in (prompts[::20], steps[::20]):
        errors = sorted(abs(_modelled(r) / r.seconds - 1) for r in rows if r.head_dim <= 256)
        assert len(errors) > 50
        assert errors[len(errors) // 2] < 0.07


def _modelled(row):
    return attention(
        row.gpu, batch=row.batch, heads=row.heads, kv_heads=row.kv_heads, q_len=row.q_len,
        kv_len=row.kv_len, head_dim=row.head_dim, causal=row.causal,
    )  # fmt: skip


def test_a_slower_memory_slows_decoding():
    rates, gpu = rates_of("h100"), GPUS["h100"]
    call: dict = dict(
        batch=64, heads=32, kv_heads=8, q_len=1, kv_len=8192, head_dim=128, causal=False
    )
    fast, slow = (
        attention_seconds(rates.attention, gpu.sm_count, memory, **call)
        for memory in (rates.memory_bytes_per_s, rates.memory_bytes_per_s / 2)
    )
    assert slow == pytest.approx(2 * fast, rel=0.05)
    far = dataclasses.replace(rates.attention.decode["256"], memory_share=0.1)
    worse = dataclasses.replace(rates.attention, decode={"256": far})
    assert attention_seconds(worse, gpu.sm_count, rates.memory_bytes_per_s, **call) > 5 * fast
