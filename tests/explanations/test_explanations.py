"""Faults are found at their line with what mending them saves; clean programs raise no alarm."""

import math

import pytest

import parallax as px
from tests.explanations.case import compile_case, defaults
from tests.explanations.clean import CLEAN
from tests.explanations.faulty import FAULTY

# These take seconds; the others are training steps of many layers, compiled up to nine times.
MARKS = {
    "loop_gather": pytest.mark.slow,
    "there_and_back": pytest.mark.slow,
    "wide_reduction": pytest.mark.full,
    "sum_per_microbatch": pytest.mark.full,
    "replicated_parameter": pytest.mark.full,
    "full_rematerialization": pytest.mark.full,
}


def explained(case, tries):
    with defaults():
        return px.explain(
            case.cluster, case.fn, *case.args, **case.options, tries=tries, budget_s=math.inf
        )


def parameters(cases):
    return [
        pytest.param(c, id=c.name, marks=MARKS.get(c.name, pytest.mark.exhaustive)) for c in cases
    ]


def is_at_fault(finding, case):
    if case.line is None:
        return finding.argument.startswith(case.argument)
    return finding.line is not None and finding.line[:2] == (case.file, case.line)


@pytest.mark.parametrize("case", parameters(FAULTY))
def test_a_fault_is_found_first_with_what_mending_it_saves(case, aot):
    findings = explained(case, tries=6).findings
    at_fault = [f for f in findings[:2] if is_at_fault(f, case)]
    assert at_fault, [(f.kind, f.where) for f in findings]
    before, after = compile_case(case), compile_case(case.mended)
    quantities = {
        "time": lambda c: px.predict(c).step_s.value,
        "memory": lambda c: c.memory.total_bytes,
        "sent bytes": lambda c: c.wire_bytes,
    }
    saved = quantities[case.saves](before) - quantities[case.saves](after)
    names = {"time": "seconds", "memory": "memory_bytes", "sent bytes": "sent_bytes"}
    said = getattr(at_fault[0].saving, names[case.saves])
    assert said == pytest.approx(saved, rel=0.1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", CLEAN, ids=lambda case: case.name)
def test_a_clean_program_raises_no_alarm(case, aot):
    assert [(f.kind, f.where, f.fix) for f in explained(case, tries=4).findings] == []
