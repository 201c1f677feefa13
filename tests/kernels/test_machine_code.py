"""What ships, as machine code for the H100: wgmma, registers, shared memory, spills."""

import pytest

from parallax.kernels.chip import SHARED_BYTES_LIMIT
from parallax.kernels.operations import OPERATIONS
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment
from parallax.lenses.machine_code import compile_operations

CASES = [(name, case) for name, op in OPERATIONS.items() for case in op.SHIPPED]
IDS = [f"{name}-{case.name}" for name, case in CASES]
PRODUCTS = {"float16": "f16", "bfloat16": "bf16"}


@pytest.fixture(scope="module")
def compiled(aot):
    found = run_in_child(compile_operations, list(OPERATIONS), environment=compile_environment())
    codes = {}
    for name, case, code in found:
        codes.setdefault((name, case), []).append(code)
    return codes


@pytest.mark.parametrize("case", CASES, ids=IDS)
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
    if case[1].uses_wgmma:
        products = {product for code in kernels for product in code.products}
        assert products == {PRODUCTS[case[1].dtype]}
