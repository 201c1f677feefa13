"""The programs that `px.explain` is judged on: they compile, and a fault costs what it should."""

import pytest

import parallax as px
from tests.explain.case import Case, compile_case
from tests.explain.faulty import FAULTY

pytestmark = pytest.mark.slow


def figures(case: Case) -> dict[str, float]:
    """Compile a case; return its modelled seconds, bytes of memory and bytes sent, per device."""
    found = compile_case(case)
    time, memory, sent = px.predict(found).step_s.value, found.memory.total_bytes, found.wire_bytes
    print(f"{case.name:34} {time * 1e3:8.2f} ms {memory / 1e9:7.2f} GB {sent / 1e6:9.1f} MB sent")
    assert found.memory.fits
    return {"time": time, "memory": memory, "sent bytes": sent}


def test_each_kind_of_fault_has_one_program_and_one_place():
    assert len({case.name for case in FAULTY}) == len({case.kind for case in FAULTY}) == 12
    assert all((case.line is None) != (case.argument == "") for case in FAULTY)


@pytest.mark.full
@pytest.mark.parametrize("case", FAULTY, ids=lambda case: case.name)
def test_a_program_without_its_fault_has_less_of_what_it_saves(case, aot):
    faulty, fixed = figures(case), figures(case.mended)
    assert fixed[case.saves] <= 0.95 * faulty[case.saves]
    # What a fault costs is seen in time or memory, not only in bytes.
    assert any(fixed[name] <= 0.95 * faulty[name] for name in ("time", "memory"))
