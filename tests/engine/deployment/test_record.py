"""The committed record of benchmarks/deployment.py says what the documents say of it."""

import json
from pathlib import Path

RECORD = Path(__file__).resolve().parents[3] / "benchmarks" / "cpu" / "deployment.json"


def test_twenty_losses_each_and_a_hundred_switches():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["passed"]
    assert record["command"].startswith("python benchmarks/deployment.py")
    assert {"jax", "python"} <= set(record["versions"])
    sizes = {(c["setup"]["devices"], len(c["setup"]["spares"])) for c in record["cases"].values()}
    assert sizes == {(17, 1), (16, 0)}
    for case in record["cases"].values():
        assert case["setup"]["equals_unsharded"] is True
        trials = case["losses"]["trials"]
        assert len(trials) == 20
        assert all(t["kind"] == "simulated" and t["layers"] for t in trials)
        assert sum(t["lost_requests"] + t["changed_tokens"] for t in trials) == 0
        assert sum(t["compiled_programs"] for t in trials) == 0
        assert case["losses"]["unprepared"]["compiled_programs"] > 0
    (switched,) = (c["switches"] for c in record["cases"].values() if c["switches"])
    assert {where: s["count"] for where, s in switched.items()} == {"device": 100, "host": 100}
