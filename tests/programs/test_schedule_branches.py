"""Figures of a pipeline's branches: the compiled program's ledger is that of the jaxpr."""

import pytest

from parallax.hlo import parse_module, read_ledger
from parallax.hlo.flops import module_flops
from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.parallel.schedules import make_schedule
from parallax.programs.schedule_branches import schedule_branches
from tests.parallel.pipelines import HIDDEN, LENGTH, MESH, VOCAB, WIDTH, pipelined


@pytest.mark.parametrize(("name", "ring"), [("1f1b", ()), ("zb-h1", ()), ("gpipe", ("data",))])
def test_a_compiled_pipeline_s_ledger_is_that_of_its_jaxpr(name, ring):
    layers, microbatches = 4, 3
    schedule = make_schedule(name, 2, microbatches)
    branches = schedule_branches(schedule, is_uniform=bool(ring))
    run, arguments = pipelined(schedule, layers, 2 * microbatches, lookup=("tensor",), ring=ring)
    traced = run.trace(*arguments)
    made = parse_module(traced.lower().compile().as_text() or "")
    compiled = read_ledger(made, MESH, trips=branches)
    written = jaxpr_ledger(traced.jaxpr, MESH, trips=branches)
    assert not any(c.in_branch for c in compiled)
    # The test's own order of layers is made outside of the program that the jaxpr writes down.
    theirs = {k: v for k, v in compiled.by_kind_and_axes().items() if k in dict_of(written)}
    assert theirs == pytest.approx(dict_of(written))
    if ring:
        return
    sums = [c for c in written if (c.kind, c.axes) == ("all-reduce", ("tensor",))]
    each = layers // 2 * microbatches
    # Forward a sum per layer, backward another; what ZB-H1's weights go back through is the same.
    assert sum(c.count for c in sums) == each * (2 if name == "1f1b" else 3)
    if name == "1f1b":
        tokens = microbatches * LENGTH
        # The gradient of a gate's input is an outer product, which is none of matrices.
        layer = 2 * tokens * (3 * 2 * WIDTH * HIDDEN // 2 + 2 * WIDTH)
        head = 3 * 2 * tokens * WIDTH * VOCAB // 4
        flops = module_flops(made, trips=branches)
        assert flops.low == flops.high == layers // 2 * layer + head


def dict_of(ledger):
    return dict(ledger.by_kind_and_axes())
