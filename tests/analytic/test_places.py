"""Every transfer has one place in the synthetic trace, found by its role and never by a text."""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parallax.analytic import estimate, places
from parallax.analytic.sends import one_send
from parallax.bounds import Transfer
from parallax.hlo.execution_trace import Loop
from parallax.meshes.cluster import cluster
from parallax.meshes.mesh import MeshSpec
from parallax.papers import PAPERS
from parallax.program import Program
from parallax.programs.steps import Prefill, make_step
from parallax.strategies import STRATEGIES, build, expert_parallel, hybrid, layerwise, two_level
from parallax.strategies.ulysses import ulysses
from parallax.strategy import Strategy
from tests.strategies import cases

WHERE = cluster("h100_2x8")
DENSE = PAPERS["compressed_layerwise"].config
MODELS = {
    "dense": DENSE.replace(qk_norm=True),
    "one layer": DENSE.replace(num_layers=1),
    "experts": DENSE.replace(num_experts=16, d_ff=2048, qk_norm=True),
}
BUILT: dict[str, Strategy] = {
    **{name: build(name) for name in STRATEGIES},
    **cases.HYBRIDS,
    **{name: s for name, s in cases.VARIANTS.items() if not name.startswith("tiled")},
    **cases.WITH_EXPERTS,
    "scores x ulysses": hybrid(two_level(2, 2, reduction="scores"), ulysses(4)),
    "by node x pipeline": hybrid(expert_parallel(8, nodes=2, exchange="ragged"), layerwise(2)),
}


def steps(strategy: Strategy, config):
    """(what it is, step) of all that this strategy can run of this model."""
    workload = Program(config, strategy).workload(64, 4096, 4)
    try:
        decoding = make_step(config, strategy, replace(workload, microbatches=1), "decode")
    except ValueError:
        return
    yield "prefill", make_step(config, strategy, workload)
    yield "packed prefill", make_step(config, strategy, replace(workload, packed=True))
    yield "decode", decoding


@pytest.mark.parametrize("name", BUILT)
def test_what_a_trace_sends_is_what_the_transfers_are(name):
    """By bytes, which know nothing of places: nothing lost, nothing doubled."""
    strategy, seen = BUILT[name], set()
    for model, config in MODELS.items():
        for phase, step in steps(strategy, config):
            cost = estimate(step, WHERE).cost
            sent = sum(t.wire_bytes for t in step.of_shard_map())
            assert cost.link_bytes == pytest.approx(sent, rel=1e-12, abs=0), (model, phase)
            seen.add(phase)
    assert seen == {"prefill", "packed prefill", "decode"}


def prefill(name):
    strategy = build(name)
    return make_step(DENSE, strategy, Program(DENSE, strategy).workload(64, 4096, 4))


def test_a_role_without_a_place_is_named(monkeypatch):
    step = prefill("ulysses")
    monkeypatch.setattr(
        places, "PLACES", {r: p for r, p in places.PLACES.items() if r != "queries"}
    )
    lost = r"sends queries \('queries between tokens and heads' over seq\), 0 times instead of 64\."
    with pytest.raises(AssertionError, match=lost):
        estimate(step, WHERE)


def test_a_new_role_has_to_be_placed(monkeypatch):
    step = prefill("data_parallel")
    role: Any = "moon_gather"
    gathered = Transfer(role, "weights of a layer", "all-gather", ("data",), 64e6, 64, 64e6)
    monkeypatch.setattr(Prefill, "of_shard_map", lambda step: (gathered,))
    with pytest.raises(AssertionError, match=r"moon_gather \('weights of a layer' over data\)"):
        estimate(step, WHERE)
    monkeypatch.setattr(places, "PLACES", {**places.PLACES, role: "before_attention"})
    assert estimate(step, WHERE).cost.link_bytes == 64e6


def test_a_transfer_sent_twice_is_named():
    moved = Transfer("attention_sum", "sum of attention", "all-reduce", ("tensor",), 6.0, 6, 6.0)
    sum_ = places.placed(moved, one_send(moved, MeshSpec({"tensor": 8})), 2, 3)
    assert (sum_.place, sum_.times) == ("after_attention", 1)

    def steps(*layer):
        return {
            "entry": (Loop("ticks", 2, "tick", "test"),),
            "tick": (Loop("layers", 3, "layer", "test"),),
            "layer": layer,
        }

    places.check_sent_once(steps(sum_.send), [sum_])
    with pytest.raises(AssertionError, match="12 times instead of 6"):
        places.check_sent_once(steps(sum_.send, sum_.send), [sum_])


# Words for a reader: of a transfer, a collective, a kernel, a table's row.
WORDS = {"what", "label", "op_name", "says", "note"}
# XLA's own names are its format; a row of `quality` has a key called label.
MAY_MATCH = {"hlo", "quality"}


def matched_words(tree: ast.AST) -> list[str]:
    """Expressions that compare such words with a literal, or look into them."""

    def words(node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and node.attr in WORDS

    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = any(isinstance(side, ast.Constant | ast.Name) for side in sides)
            if any(map(words, sides)) and named:
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Attribute) and words(node.value) and hasattr(str, node.attr):
            found.append(ast.unparse(node))
    return found


def test_no_number_is_routed_by_words():
    root = Path(places.__file__).parents[1]
    checked, found = 0, []
    for folder in (root, *(root.parent / n for n in ("kernels", "meshes", "experiments"))):
        for file in folder.rglob("*.py"):
            if not MAY_MATCH & set(file.relative_to(folder).parts):
                checked += 1
                found += [(file.name, x) for x in matched_words(ast.parse(file.read_text("utf-8")))]
    assert checked > 200
    assert found == []


@pytest.mark.parametrize(
    "code",
    ["t.what == 'stage handoff'", "'mlp' in kernel.label", "t.what not in _OPEN",
     "x[0].what.startswith(('sum', 'gather'))"],
)  # fmt: skip
def test_matching_words_is_seen(code):
    assert len(matched_words(ast.parse(code))) == 1
