"""The audit of every figure: verdicts against printed digits, limits against hand arithmetic."""

import dataclasses
from decimal import Decimal
from pathlib import Path

import pytest

from parallax.meshes.cluster import cluster
from parallax.papers import PAPERS
from parallax.papers.audit import audit, judge
from parallax.papers.limits import tps_limit
from parallax.papers.modelled import closed_form_on
from parallax.papers.paper import Claim, Given
from parallax.papers.results import VERDICTS
from parallax.report.audit import counts
from parallax.results.lens_results import Figure
from parallax.studies.claims_page import audit_json, audit_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "generated" / "claims.md"
AUDITS = {name: audit(paper) for name, paper in PAPERS.items()}
ALL = [(name, a) for name, audited in AUDITS.items() for a in audited]
PLAIN = [(n, a) for n, a in ALL if a.claim.reading != "tps"]


def found(name, strategy, quantity, audits=AUDITS):
    (it,) = [
        a for a in audits[name] if (a.claim.strategy, a.claim.quantity) == (strategy, quantity)
    ]
    return it


def label(value):
    return value if isinstance(value, str) else f"{value.claim.strategy}-{value.claim.quantity}"


def last_digit(printed):
    """By Decimal, another way than the code's."""
    scale = {"K": 1000, "k": 1000, "M": 10**6}.get(printed[-1], 1)
    bare = printed.rstrip("kKM").replace(",", "")
    decimals = len(bare.partition(".")[2])
    return Decimal(bare) * scale, Decimal(1).scaleb(-decimals) * scale


@pytest.mark.parametrize(("name", "a"), PLAIN, ids=label)
def test_verdicts_follow_from_the_printed_digits(name, a):
    value, step = last_digit(a.claim.printed)
    assert float(value) == a.claim.value
    if a.derived is None:
        assert a.verdict == "not derivable from the text"
        return
    off = abs(value - Decimal(repr(a.derived)))
    slack = step * Decimal("1e-8")
    if a.claim.relation == "equals":
        within = off <= step / 2 + slack, off <= step + slack
        expected = {(True, True): "consistent", (False, True): "rounding"}.get(within)
        assert a.verdict == (expected or a.claim.otherwise)
    else:
        more = value > Decimal(repr(a.derived))
        held = off <= step / 2 + slack or more == (a.claim.relation == "at least")
        assert a.verdict == ("consistent" if held else a.claim.otherwise)


def test_every_claim_has_a_reason_lines_and_a_name_of_its_own():
    for name, paper in PAPERS.items():
        names = [(c.strategy, c.quantity) for c in paper.claims]
        assert len(set(names)) == len(names)
        assert {a.verdict for a in AUDITS[name]} <= set(VERDICTS)
        for claim in paper.claims:
            assert claim.reason.strip() == claim.reason != ""
            assert "\n" not in claim.reason
            assert claim.lines
            assert claim.otherwise not in ("consistent", "rounding")


def test_nothing_is_derived_from_itself():
    """A derivation that reads its own claim would agree with any figure."""
    for name, a in PLAIN:
        if a.claim.derive is None:
            continue
        paper = PAPERS[name]
        odd = dataclasses.replace(a.claim, printed="7.31")
        changed = dataclasses.replace(
            paper, claims=tuple(odd if c is a.claim else c for c in paper.claims)
        )
        again = a.claim.derive(Given(changed, odd, cluster(paper.cluster)))
        assert again == a.derived, (name, a.claim.quantity)


@pytest.mark.parametrize(
    ("claim", "derived", "verdict"),
    [
        ("0.078", 0.0784, "consistent"), ("0.078", 0.0787, "rounding"),
        ("0.078", 0.0792, "arithmetic error"), ("1.20M", 1.204e6, "consistent"),
        ("1.20M", 1.21e6, "rounding"), ("1.20M", 1.22e6, "arithmetic error"),
        ("12,800", None, "not derivable from the text"),
    ],
)  # fmt: skip
def test_judging(claim, derived, verdict):
    it = Claim("", "x", claim, "ms", "other", (1,), "why", otherwise="arithmetic error")
    assert judge(it, derived) == verdict


def test_limits_by_hand():
    """ring_sp: 4 layers of 4 D^2 + 2 D F, causal pairs, 16 x 989 TFLOP/s; a ring of 15 hops."""
    where, paper = cluster("h100_2x8"), PAPERS["ring_sp"]
    flops = 2 * 4 * (4 * 8192**2 + 2 * 8192 * 32768) + 4 * 4 * 8192 * 10_001 / 2
    ring = tps_limit(paper, "ring_sequence", "prefill", where)
    assert ring.terms_s["compute"] == pytest.approx(10_240_000 * flops / (16 * 989e12))
    sent = 15 * 2 * 625 * 8192 * 2 * 4 * 1024
    assert ring.terms_s["network"] == pytest.approx(sent / 50e9, rel=1e-3)
    assert ring.set_by == "network"
    decode = tps_limit(PAPERS["compressed_layerwise"], "layerwise", "decode", where)
    cache = 128 * 10_000 * 16 * 2 * 4096 * 2
    weights = 16 * (4 * 4096**2 + 3 * 4096 * 16384 + 2 * 4096) * 2 + 32_000 * 4096 * 2
    assert decode.terms_s["HBM"] == pytest.approx((cache + weights) / (16 * 3.35232e12))
    assert decode.fits
    wide = tps_limit(PAPERS["cache_layerwise"], "layerwise", "decode", where)
    assert wide.held_bytes > 5.3e12
    assert not wide.fits


_HIDDEN = 128 * 10_000 * 4096 * 2  # bytes of compressed_layerwise's hidden state
_EXPERT = 2 * 8192 * 32_768 * 2  # bytes of two matrices
BY_HAND = {
    ("compressed_layerwise", "", "activations"): 3 * _HIDDEN / 1e6,
    ("compressed_layerwise", "", "attention weights to compress"): 4 * 4096**2 * 2 / 1e6,
    ("compressed_layerwise", "", "MLP weights to compress"): 3 * 4096 * 16_384 * 2 / 1e6,
    ("compressed_layerwise", "layerwise", "attention weights in INT8"): 4 * 4096**2 / 1e6,
    # Half of the weights, a byte and two bits each.
    ("compressed_layerwise", "layerwise", "MLP weights in INT8 and 2:4"):
        3 * 4096 * 16_384 / 2 * 1.25 / 1e6,
    ("compressed_layerwise", "layerwise", "further reduction by 2:4"): 37.5,
    ("compressed_layerwise", "layerwise", "compressed layer"):
        (4 * 4096**2 + 3 * 4096 * 16_384 / 2 * 1.25 + 2 * 4096) / 1e6,
    ("compressed_layerwise", "", "uncompressed layer"): 100.7 + 33.6 + 3 * 134.2 + 0.016 + 108.3,
    ("compressed_layerwise", "", "final activations"): 98.3 * 0.25 * 0.8,
    ("compressed_layerwise", "tensor_pipeline", "bytes of one all-reduce"): _HIDDEN / 8 / 1e6,
    ("compressed_layerwise", "tensor_pipeline", "bytes of all all-reduces"): 32 * _HIDDEN / 1e9,
    ("compressed_layerwise", "tensor_pipeline", "bytes of all stage transfers"): _HIDDEN / 1e6,
    ("compressed_layerwise", "layerwise", "bytes of all layer-to-layer transfers"):
        15 * _HIDDEN / 1e6,
    ("compressed_layerwise", "layerwise", "energy efficiency improvement"):
        100 * (15_360 / 10.4 / (12_800 / 11.2) - 1),
    ("compressed_layerwise", "layerwise", "TPS with 8 layers"): 15_360,
    ("cross_node_ep", "", "one expert matrix"): 8192 * 32_768 * 2 / 2**20,
    ("cross_node_ep", "expert_parallel", "expert weights a GPU"): 4 * _EXPERT / 2**20,
    ("cross_node_ep", "expert_parallel", "weights of all GPUs"): 64 * _EXPERT / 2**30,
    ("cross_node_ep", "tensor_pipeline", "experts of a layer a GPU"): 2,
    # Two experts, attention, causal pairs; of 16 x 989 TFLOP/s.
    ("cross_node_ep", "expert_parallel", "compute utilisation"):
        100 * 450_000 * 4 * (2 * (2 * _EXPERT / 2 + 4 * 8192**2) + 4 * 8192 * 5000.5)
        / (16 * 989e12),
    ("two_level", "two_level", "TPOT"): 16e3 / 1.58e6,
    ("ring_sp", "ring_sequence", "TPOT"): 1e3 / 1.45e6,
}  # fmt: skip


@pytest.mark.parametrize("key", BY_HAND, ids="-".join)
def test_derived_by_hand(key):
    assert found(*key).derived == pytest.approx(BY_HAND[key], rel=1e-9)


def test_readings_of_a_tpot_by_hand():
    a = found("ring_sp", "tensor_pipeline", "TPOT")
    inverse, in_us, overhead, request = (r.value for r in a.tpot)
    assert inverse == pytest.approx(1e3 / 1.2e6)
    assert in_us == pytest.approx(1e6 / 1.2e6)
    assert overhead == pytest.approx(16e3 / 1.2e6)
    assert request == pytest.approx(1024e3 / 1.2e6)
    # One paper's baseline at equal FLOP/s in another: half the layers, half the FLOPs a token.
    assert found("ring_sp", "tensor_pipeline", "TPS").implied == pytest.approx(0.6e6)


def test_a_cache_that_does_not_fit_is_no_way_to_decode():
    """Slow enough for HBM, yet 5.4 TB of keys and values are not to be held."""
    paper = PAPERS["cache_layerwise"]
    (claim,) = [c for c in paper.claims if (c.strategy, c.quantity) == ("layerwise", "TPS")]
    slow = dataclasses.replace(claim, printed="9,000")
    changed = dataclasses.replace(
        paper, claims=tuple(slow if c is claim else c for c in paper.claims)
    )
    prefill, decode = found("x", "layerwise", "TPS", {"x": audit(changed)}).tps
    assert decode.limit.tokens_per_s > 9_000
    assert decode.beyond
    assert not prefill.beyond


def test_known_contradictions_have_their_verdicts():
    """Each is worked out beside the papers by hand; none may turn into an agreement."""
    known = {
        ("ring_sp", "ring_sequence", "TPS"): "beyond the physical bound",
        ("ring_sp", "tensor_pipeline", "TPS"): "contradicts another claim",
        ("ring_sp", "tensor_pipeline", "TPOT"): "arithmetic error",
        ("two_level", "two_level", "TPOT"): "contradicts another claim",
        ("cross_node_ep", "expert_parallel", "TPOT"): "arithmetic error",
        ("cross_node_ep", "expert_parallel", "expert weights a GPU"): "contradicts another claim",
        ("cache_layerwise", "layerwise", "TPOT"): "consistent",
        ("compressed_layerwise", "", "activations"): "arithmetic error",
        ("compressed_layerwise", "layerwise", "TPS with 64 layers"): "contradicts another claim",
        ("compressed_layerwise", "layerwise", "energy efficiency improvement"): "rounding",
        ("compressed_layerwise", "layerwise", "further compressed layer"):
            "not derivable from the text",
    }  # fmt: skip
    assert {key: found(*key).verdict for key in known} == known


def test_one_switch_makes_the_ring_possible():
    here = found("ring_sp", "ring_sequence", "TPS")
    assert "on h100_nvl16 the prefill reading is possible" in here.elsewhere
    there = {"ring_sp": audit(PAPERS["ring_sp"], on=cluster("h100_nvl16"))}
    assert found("ring_sp", "ring_sequence", "TPS", there).verdict == "consistent"


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure(1e6, "tokens/s", "modelled", 0.9e6, 1.1e6), "modelled, off by"),
        (Figure(1.3e6, "tokens/s", "modelled", 1.1e6, 1.5e6), "consistent"),
    ],
)
def test_a_model_decides_what_is_possible(figure, verdict):
    asked = []

    def model(paper, strategy, reading):
        asked.append((paper.name, strategy, reading))
        return figure if reading == "prefill" else None

    audits = {"ring_sp": audit(PAPERS["ring_sp"], model)}
    base = found("ring_sp", "tensor_pipeline", "TPS", audits)
    assert base.verdict == verdict
    if verdict == "modelled, off by":
        assert base.off_by == pytest.approx(1.2)
    # No model makes possible what the links forbid.
    assert found("ring_sp", "ring_sequence", "TPS", audits).verdict == "beyond the physical bound"
    assert ("ring_sp", "tensor_pipeline", "decode") in asked


def test_every_reading_of_a_tpot_and_a_tps_is_there():
    for _, a in ALL:
        assert len(a.tps) == (2 if a.claim.reading == "tps" else 0)
        names = [r.name for r in a.tpot]
        assert bool(names) == (a.claim.quantity == "TPOT")
        if names:
            assert names == [
                "inv_tps", "inv_tps_us_printed_ms", "sync_overhead_per_token", "request"
            ]  # fmt: skip
            assert not a.tpot[-1].possible  # none is the time per output token of a request
            assert a.claim.reading in names


def test_json_has_every_figure_with_its_derivation():
    for name, audited in AUDITS.items():
        rows = audit_json(audited)
        assert len(rows) == len(PAPERS[name].claims) == sum(counts(audited).values())
        for row in rows:
            assert (row["derived"] is None) == (row["verdict"] == "not derivable from the text")


def test_the_committed_page_is_current():
    fix = "parallax claims --out=out && cp out/claims.md docs/generated/claims.md"
    modelled = {n: audit(p, closed_form_on(cluster(p.cluster))) for n, p in PAPERS.items()}
    assert PAGE.read_text(encoding="utf-8") == audit_markdown(modelled, PAPERS), f"run: {fix}"


def test_the_model_decides_what_is_possible_and_leaves_the_rest():
    """A possible figure is judged by the model, one beyond its bound is not."""
    where = cluster("h100_2x8")
    audits = {"ring_sp": audit(PAPERS["ring_sp"], closed_form_on(where))}
    base = found("ring_sp", "tensor_pipeline", "TPS", audits)
    assert base.verdict == "modelled, off by"
    assert base.off_by is not None
    assert 1.5 < base.off_by < 2.5
    ring = found("ring_sp", "ring_sequence", "TPS", audits)
    assert ring.verdict == "beyond the physical bound"
    prefill = ring.tps[0]
    assert prefill.modelled is not None
    assert prefill.modelled.value < prefill.limit.tokens_per_s
