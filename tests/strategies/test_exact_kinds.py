"""Every strategy computes models with windows, sinks, caps, norms and rotations of many kinds."""

import pytest

from parallax.lenses.text import read_text
from parallax.lenses.verify_decoding import verify_decoding
from parallax.lenses.verifying import verify_transformer
from parallax.parallel.cache_slots import window_spans
from parallax.parallel.scoring import Scoring
from parallax.programs import decoding
from parallax.strategies import fsdp, layerwise, ring_sequence
from tests.selection import often
from tests.strategies.cases import (
    HYBRIDS,
    KINDS,
    OTHERS,
    STRATEGIES,
    VARIANTS,
    workload,
)

pytestmark = pytest.mark.slow

TEXT = read_text(None, 16 * 80)[0]
RINGS = {
    "natural ring": ring_sequence(16, order="natural"),
    "natural double ring": ring_sequence(16, nodes=2, order="natural"),
    "stages": layerwise(2, handoff="lockstep"),
    "fsdp": fsdp(8),
}


ALL = STRATEGIES | VARIANTS | RINGS
# A weight tile does not see all heads, whose norm the other model takes.
UNTILED = {n: s for n, s in ALL.items() if n not in ("tiled stages", "tiled ring x tensor")}
UNTILED.pop("cache_tiled", None)


def check(config, strategy, packed=False):
    case = strategy, workload(strategy, packed)
    (result,) = verify_transformer(config, [case], TEXT, "text", ("float64",))
    assert result.rows[0].passed, result.rows[0]


# Layers of several kinds in slabs here, in stages below; attention parts have tests of their own.
@often(ALL, "tiled stages")
def test_every_strategy(name):
    check(KINDS, ALL[name])


@pytest.mark.exhaustive
@often(HYBRIDS, "pipeline x ring x tensor")
def test_hybrids_packed(name):
    check(KINDS, HYBRIDS[name], packed=True)


@pytest.mark.exhaustive
@often(UNTILED, "tensor_pipeline")
def test_norms_of_all_heads_and_behind_each_part(name):
    check(OTHERS, UNTILED[name], packed=True)


def test_a_norm_of_all_heads_is_not_cut_into_weight_tiles():
    with pytest.raises(ValueError, match="norm of queries and keys is over all heads"):
        check(OTHERS, VARIANTS["tiled stages"])


def decoded(config, strategies):
    cases = [(s, workload(s, seq_len=32)) for s in strategies]
    return verify_decoding(config, cases, TEXT, "text", ("float64",), new_tokens=32)


@pytest.mark.full
def test_decoding():
    strategies = [
        STRATEGIES["two_level"], RINGS["natural double ring"],
    ]  # fmt: skip
    for result in decoded(KINDS, strategies):
        assert result.same_tokens
        assert result.rows[0].passed, result.rows[0]


@pytest.mark.full
def test_a_window_one_token_wider_is_another_model(monkeypatch):
    """In a forward pass, and in a decoding step, whose slots are picked by other code."""
    config = KINDS.replace(num_layers=2)
    reach = Scoring.reached
    monkeypatch.setattr(Scoring, "reached", lambda self, *sizes: max(0, reach(self, *sizes) - 1))
    ring = RINGS["natural ring"]
    (result,) = verify_transformer(config, [(ring, workload(ring))], TEXT, "text", ("float64",))
    assert result.rows[0].logits_error > 1e-4
    monkeypatch.setattr(
        decoding, "window_spans",
        lambda spans, runs, oldest, *rest: window_spans(spans, runs, oldest - 1, *rest),
    )  # fmt: skip
    (result,) = decoded(config, [VARIANTS["double_ring"]])
    assert result.rows[0].logits_error > 1e-4
