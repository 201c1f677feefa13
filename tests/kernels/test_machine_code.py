"""What ships, as machine code for the H100: wgmma, registers, shared memory, spills.

One configuration of each operation always, one of each width and cut in full runs.
"""

import pytest

from parallax.kernels.chip import SHARED_BYTES_LIMIT
from parallax.kernels.operations import OPERATIONS
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment
from parallax.lenses.machine_code import compile_kernels

pytestmark = pytest.mark.slow


def marked():
    """All cases: one of an operation always, one of each width and cut in full runs."""
    for name, operation in OPERATIONS.items():
        seen = set()
        for number, case in enumerate(operation.SHIPPED):
            cut = case.kind.head_dim, case.kind.cut
            marks = (
                [] if number == 0 else [pytest.mark.exhaustive if cut in seen else pytest.mark.full]
            )
            seen.add(cut)
            yield pytest.param((name, case), id=f"{name}-{case.name}", marks=marks)


CASES = list(marked())
PRODUCTS = {"float16": "f16", "bfloat16": "bf16", "int8": "bf16"}


def compile_cases(cases, *, on_progress):
    """In a child: kernels of each (operation, case)."""
    found = {}
    for name, case in cases:
        on_progress(f"{name}, {case.name}")
        program, arrays = OPERATIONS[name].program(case, "mosaic"), OPERATIONS[name].inputs(case, 0)
        found[name, case.name] = compile_kernels(program, arrays)
    return found


@pytest.fixture(scope="module")
def compiled(aot, request):
    """Machine code of the cases that this session runs, made once in one child process."""
    here = [item for item in request.session.items if item.path == request.path]
    cases = [item.callspec.params["case"] for item in here]
    return run_in_child(compile_cases, cases, environment=compile_environment())


@pytest.mark.parametrize("case", CASES)
def test_what_ships_has_no_spills_and_fits(compiled, case):
    kernels = compiled[case[0], case[1].name]
    assert kernels
    for code in kernels:
        print(
            f"{code.name}: {len(code.products)} wgmma, {code.entry_registers} registers at entry, "
            f"{'/'.join(map(str, code.registers))} after ({code.asked_for} of "
            f"{code.started_with} in all), {code.shared_bytes} B shared"
        )
        assert not code.spills, code
        assert code.warnings == ()  # one says that register counts are ignored
        assert code.asked_for <= code.started_with, "a warpgroup waits for registers for ever"
        assert code.shared_bytes <= SHARED_BYTES_LIMIT
    products = {product for code in kernels for product in code.products}
    assert products == {PRODUCTS[case[1].dtype]}
