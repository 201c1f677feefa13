"""Two accounts of a program: only differing bytes are reported."""

from parallax.hlo.compare import Totals, differing_totals

RING, SUM = ("collective-permute", ("seq",)), ("all-reduce", ("tensor",))


def test_rounding_is_no_difference_and_a_lost_collective_is():
    full: Totals = {RING: 1e12, SUM: 7.0}
    close: Totals = {RING: 1e12 + 1, SUM: 7.0}
    lost: Totals = {RING: 1e12}
    assert differing_totals(full, close) == ()
    assert differing_totals(full, lost) == ((*SUM, 7.0, 0.0),)
    assert differing_totals({}, full) == ((*RING, 0.0, 1e12), (*SUM, 0.0, 7.0))
    assert differing_totals({SUM: 7.0}, {("all-reduce", None): 7.0}) != ()
