"""Branches of which a caller knows how often each side is taken."""

from fractions import Fraction

import pytest

from parallax.hlo import read_ledger
from parallax.hlo.branches import Taken
from parallax.hlo.execution_trace import Choice
from parallax.hlo.flops import module_flops
from parallax.hlo.read_trace import read_trace
from tests.hlo.programs import computation, module

X = "f32[4,4]"
SIGNATURE = f"(p: {X}) -> {X}"
P = f"%p = {X} parameter(0)"
ADD = computation(
    "add", "(a: f32[], b: f32[]) -> f32[]", "%a = f32[] parameter(0)", "%b = f32[] parameter(1)",
    "ROOT %s = f32[] add(%a, %b)",
)  # fmt: skip
AROUND = "jit(f)/while/body/cond"
DOT = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
# In 10 ticks a device takes `first` in 4 and `second` in 3; in ticks 2 to 5 devices differ.
TRIPS = {
    "first": Taken(Fraction(4, 10), frozenset(range(6)), 10),
    "second": Taken(Fraction(3, 10), frozenset(range(2, 9)), 10),
}


def side(number, scope, *lines):
    metadata = f'metadata={{op_name="{AROUND}/branch_{number}_fun/{scope}/op"}}'
    return computation(f"side{number}", SIGNATURE, P, *(x.replace("META", metadata) for x in lines))


def loop(scopes=("first", "second"), trips=10):
    """A loop of 10 ticks: idle; a product; two products and an all-reduce."""
    idle = computation("side0", SIGNATURE, P, f"ROOT %c = {X} copy(%p)")
    one = side(1, scopes[0], f"ROOT %d = {X} dot(%p, %p), {DOT}, META")
    two = side(
        2, scopes[1], f"%d = {X} dot(%p, %p), {DOT}, META", f"%e = {X} dot(%d, %p), {DOT}, META",
        f"ROOT %r = {X} all-reduce(%e), channel_id=1, use_global_device_ids=true, "
        "replica_groups={{0,1}}, to_apply=%add, META",
    )  # fmt: skip
    body = computation(
        "body", SIGNATURE, P, "%i = s32[] constant(1)",
        f"ROOT %w = {X} conditional(%i, %p, %p, %p), "
        "branch_computations={%side0, %side1, %side2}, "
        f'metadata={{op_name="{AROUND}"}}',
    )  # fmt: skip
    test = computation("test", f"(p: {X}) -> pred[]", P, "ROOT %c = pred[] constant(true)")
    known = f'backend_config={{"known_trip_count":{{"n":"{trips}"}}}}'
    main = computation(
        "main", SIGNATURE, P,
        f"ROOT %l = {X} while(%p), condition=%test, body=%body, {known}", entry=True,
    )  # fmt: skip
    return module(ADD, idle, one, two, body, test, main, devices=2)


PRODUCT = 2 * 4 * 4 * 4


def test_flops_and_collectives_count_as_often_as_a_device_takes_their_side():
    made = loop()
    flops = module_flops(made, trips=TRIPS)
    assert flops.low == flops.high == pytest.approx((4 + 2 * 3) * PRODUCT)
    assert flops.gemms == 4 + 2 * 3
    (sent,) = read_ledger(made, {"x": 2}, trips=TRIPS)
    assert (sent.count, sent.in_branch) == (3, False)


def test_without_figures_a_branch_counts_as_before():
    made = loop()
    flops = module_flops(made)
    assert (flops.low, flops.high, flops.gemms) == (0, 20 * PRODUCT, 20)
    (sent,) = read_ledger(made, {"x": 2})
    assert (sent.count, sent.in_branch) == (10, True)
    # Nor is it known of two sides without a scope how often each is taken.
    unnamed = loop(scopes=("first", "other"))
    assert module_flops(unnamed, trips=TRIPS).high == 20 * PRODUCT


def test_a_trace_says_how_often_each_side_is_taken():
    made = loop()
    trace = read_trace(made, read_ledger(made, {"x": 2}, trips=TRIPS), TRIPS)
    (choice,) = trace.steps["body"]
    rest = Taken(Fraction(3, 10), frozenset({9}), 10)
    assert choice == Choice("w", ("side0", "side1", "side2"), (rest, *TRIPS.values()))
    launched = {}
    for kernel, times in trace.launches(lambda sides: sides[0]):
        launched[kernel.name] = launched.get(kernel.name, 0) + times
    assert launched["e"] == pytest.approx(3)
    assert launched["d"] == pytest.approx(4 + 3)


def test_the_scope_of_an_inner_branch_is_its_own():
    """Operations of a branch inside a named side carry that side's scope too."""
    made = loop(scopes=("first/cond/branch_0_fun/inner", "second"))
    # Side 1 now begins in `inner`, which nobody knows, beside the side without a scope.
    assert module_flops(made, trips=TRIPS).high == 20 * PRODUCT
