"""parallax inspect: any program from its text; text that is not understood is refused."""

import json

import pytest

from parallax.commands.inspect import inspect_text
from parallax.hlo import HloError
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


@pytest.mark.parametrize(
    ("text", "changes", "says"),
    [
        ("", {}, "expected 'HloModule"),
        (TEXT[:-40], {}, "line"),
        (TEXT.replace("is_scheduled=true, ", ""), {}, "not scheduled"),
        (TEXT.replace('{"known_trip_count":{"n":"3"}}', "{}"), {}, "unknown trip count"),
        (TEXT, {"cluster": "h100_4x8"}, "runs on 16 devices, cluster h100_4x8 has 32"),
        (TEXT, {"mesh": "data=4"}, "compiled for 16 partitions"),
        (TEXT, {"cluster": "abacus"}, "unknown cluster"),
    ],
)
def test_what_is_not_understood_is_refused(text, changes, says):
    with pytest.raises(ValueError, match=says):
        inspect_text(text, **changes)


def test_a_loop_of_data_is_told_by_trips():
    """One that sends nothing; how often a collective runs is never taken on trust."""
    lines = [line for line in TEXT.splitlines() if "%send" not in line]
    text = "\n".join(lines).replace("fusion(%come, %gemm)", "fusion(%x, %gemm)").replace(
        'backend_config={"known_trip_count":{"n":"3"}}', 'metadata={op_name="jit(f)/tiles/while"}'
    )  # fmt: skip
    with pytest.raises(HloError, match="unknown trip count"):
        inspect_text(text)
    two, four = (inspect_text(text, trips={"tiles": n}).cost.seconds for n in (2, 4))
    assert four == pytest.approx(2 * two, rel=1e-6)
