"""parallax inspect: any program from its text; text that is not understood is refused."""

import json

import pytest

from parallax.commands.inspect import inspect_text, mesh_axes
from tests.lenses.test_timeline import TEXT


def test_a_program_that_is_not_ours():
    found = inspect_text(TEXT)
    assert found.cluster.name == "h100_2x8"
    assert found.work.devices == 16
    (send,) = found.ledger
    assert send.count == 3
    assert found.gemm_flops == 3 * 2 * 1024**3
    assert sum(found.cost.terms.values()) == pytest.approx(found.cost.seconds)
    assert found.cost.exposed_s > 0
    data = json.loads(json.dumps(found.to_dict()))
    assert data["unvalidated"] == "time between nodes"
    assert data["collectives"][0]["count"] == 3
    kernels = {row["what"]: row["count"] for row in data["kernels"]}
    assert kernels["gemm"] == 3


def test_another_cluster_and_rates_change_the_time_only():
    slow = inspect_text(TEXT, cluster="a100_2x8")
    fast = inspect_text(TEXT, cluster="b200_2x8")
    assert fast.cost.seconds < slow.cost.seconds
    assert fast.gemm_flops == slow.gemm_flops


def test_a_named_network_is_measured_and_takes_its_own_time():
    plain = inspect_text(TEXT)
    named = inspect_text(TEXT, network="efa_400")
    assert named.cluster.name == "h100_2x8@efa_400"
    assert (plain.unvalidated, named.unvalidated) == ("time between nodes", "")
    assert named.cost.seconds > 2 * plain.cost.seconds
    assert inspect_text(TEXT, cluster="h100_2x8@efa_400").cost == named.cost


@pytest.mark.parametrize(
    ("text", "changes", "says"),
    [
        ("", {}, "expected 'HloModule"),
        (TEXT[:-40], {}, "line"),
        (TEXT, {"cluster": "h100_4x8"}, "runs on 16 devices, cluster h100_4x8 has 32"),
        (TEXT, {"mesh": "data=4"}, "compiled for 16 partitions"),
        (TEXT, {"cluster": "abacus"}, "unknown cluster"),
        (TEXT, {"network": "string"}, "unknown network 'string'. Use one of: efa"),
    ],
)
def test_what_is_not_understood_is_refused(text, changes, says):
    with pytest.raises(ValueError, match=says):
        inspect_text(text, **changes)


def test_a_loop_of_data_counts_once_or_takes_its_trips():
    text = TEXT.replace(
        'backend_config={"known_trip_count":{"n":"3"}}', 'metadata={op_name="jit(f)/tiles/while"}'
    )
    once = inspect_text(text)
    assert once.error_bar[0] is not None
    assert once.error_bar[1] is None
    (note,) = once.notes
    assert "loop tiles (line 27) of unknown trip count" in note
    assert once.ledger.open_loops == ("tiles (line 27)",)
    two, four = (inspect_text(text, trips={"tiles": n}) for n in (2, 4))
    assert four.cost.seconds == pytest.approx(2 * two.cost.seconds, rel=1e-6)
    assert [c.count for found in (once, two, four) for c in found.ledger] == [1, 2, 4]
    assert two.gemm_flops == 2 * once.gemm_flops
    assert two.notes == ()
    assert None not in two.error_bar
    (first, second) = inspect_text(text, trips={"tile_s": 2}).notes
    assert first == note
    assert "trips['tile_s'] counts nothing" in second


@pytest.mark.parametrize("axis", ["replica-group", "é", r"\303\251", "a b"])
def test_a_mesh_axis_may_have_any_name(axis):
    assert mesh_axes(f"replica_groups=mesh['{axis}'=2,'y'=4] {{'y'}}", None, 8) == {
        axis.replace(r"\303\251", "é"): 2, "y": 4,
    }  # fmt: skip


@pytest.mark.parametrize("scope", ["while", "eval_jaxpr", "cond/branch_1_fun", "closed_call"])
def test_a_loop_that_jax_alone_names_is_told_by_its_instruction(scope):
    text = TEXT.replace(
        'backend_config={"known_trip_count":{"n":"3"}}',
        f'metadata={{op_name="jit(f)/{scope}/while"}}',
    )
    (loop,) = inspect_text(text).ledger.open_loops
    assert loop.split(" ")[0] not in scope.split("/")
    assert inspect_text(text, trips={loop.split(" ")[0]: 2}).notes == ()


def test_a_text_before_scheduling_has_counts_and_no_time():
    found = inspect_text(TEXT.replace("is_scheduled=true, ", ""))
    scheduled = inspect_text(TEXT)
    assert found.timed is None
    assert "not scheduled" in found.untimed
    assert "compiled.as_text()" in found.untimed
    assert found.gemm_flops == scheduled.gemm_flops
    assert found.ledger.total() == scheduled.ledger.total()
    assert json.loads(json.dumps(found.to_dict()))["step"] is None
