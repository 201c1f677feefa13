"""Measure losses of devices at random moments, and switches of layers: requests, tokens and times.

  python benchmarks/deployment.py benchmarks/cpu/deployment.json [--losses=20] [--switches=100]
  python benchmarks/deployment.py benchmarks/cpu/deployment.json --modelled_only

The small model of compressed_layerwise (16 layers) in float64 on virtual CPU devices, each case in
a process of its own: 17 devices, one of them a spare, and 16 without a spare. Hardware: any
machine. Times are of virtual devices that share one CPU; beside them the same at full size on an
H100, modelled; --modelled_only computes these again from the record's trials, and measures nothing.
Result: per case, the record that `parallax deploy` would write. Exit status 1 if a request was lost
or a token changed.
"""

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path

from parallax.lenses.child import run_in_child
from parallax.lenses.environment import cpu_environment, versions

CASES = {"17 devices, one spare": (17, 1), "16 devices, no spare": (16, 0)}


def run_one(devices: int, spares: int, losses: int, switches: int, *, on_progress) -> dict:
    """Run one case; runs in a child with its own devices."""
    from parallax.engine.deployment.deploying import deploy

    record = deploy(
        "compressed_layerwise", devices=devices, spares=spares, small=True, dtype="float64",
        losses=losses, switches=switches, microbatches=2, on_progress=on_progress,
    )  # fmt: skip
    return record.to_dict()


def model_again(record: dict) -> None:
    """Compute the modelled part of each case of a record again, from the case's own trials."""
    from parallax.engine.deployment.full_size import modelled_record

    for case in record["cases"].values():
        rows, formats = case["setup"]["layout"], []
        for row in rows:
            if len(row["formats"]) > 1:
                raise ValueError(f"device {row['device']} has layers of several formats.")
            first, last = row["layers"]
            formats += [tuple(row["formats"][0])] * (last + 1 - first)
        strong = tuple(case["modelled"]["switch"]["formats"][1])
        case["modelled"] = modelled_record(
            case["setup"], case["losses"]["trials"], formats, strong, "compressed_layerwise"
        )


def main() -> None:
    """Run both cases, print a line each, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out")
    parser.add_argument("--losses", type=int, default=20)
    parser.add_argument("--switches", type=int, default=100)
    parser.add_argument("--modelled_only", action="store_true")
    given = parser.parse_args()
    if given.modelled_only:
        record = json.loads(Path(given.out).read_text(encoding="utf-8"))
        model_again(record)
        Path(given.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return
    cases = {}
    for name, (devices, spares) in CASES.items():
        cases[name] = run_in_child(
            run_one, devices, spares, given.losses, given.switches if spares else 0,
            environment=cpu_environment(devices, fast_code=True),
            on_progress=lambda line: print(line, flush=True),
        )  # fmt: skip
        found = cases[name]
        print(name, "exact" if found["exact"] else "NOT exact", found["losses"]["times"])
    passed = all(c["exact"] and c["setup"]["equals_unsharded"] is True for c in cases.values())
    record = {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "machine": platform.machine(), "versions": versions(), "passed": passed, "cases": cases,
    }  # fmt: skip
    Path(given.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("passed" if passed else "NOT passed")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
