"""One of two processes that measure together; prints what it found as JSON.

  python -m tests.lenses.measuring_process PORT INDEX FILE

Each has two virtual devices and a host name of its own. FILE is a text that process 0 can read.
"""

import json
import socket
import sys

import jax

from parallax.codec import encode
from parallax.distributed.startup import finish, initialize
from parallax.lenses import link_benchmarks, measuring
from parallax.lenses.text import read_text
from parallax.program import Program
from parallax.strategies import data_parallel, ring_sequence
from parallax.studies.pairs.paired_runs import measure_pairs
from tests.strategies.cases import SMALL

LATE_S = 100.0  # what process 1's clock is late, in its steps


def main(port, index, file):
    socket.gethostname = lambda: f"host{index}"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    initialize(f"localhost:{port}", 2, index, save_on_sigterm=False)
    config = SMALL.replace(dtype="float32", num_layers=1)
    ring, copies = (Program(config, strategy) for strategy in (ring_sequence(4), data_parallel(4)))
    found = {
        "alone": refusal(lambda: Program(config, data_parallel(2)).measure(4, 8)),
        "no text": refusal(lambda: ring.measure(4, 8, text=file if index == 0 else f"{file}.no")),
        "pairs": paired(config, ring, copies, seed=index),
        "links": links(),
    }
    late(index)
    found["measured"] = encode(ring.measure(4, 8, repeats=3))
    print(json.dumps(found))
    finish()


def refusal(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def paired(config, one, other, seed):
    programs = (one, other)
    work = tuple(program.workload(4, 8) for program in programs)
    text, _ = read_text(None, work[0].tokens)
    strategies = (one.strategy, other.strategy)
    runs, device, notes = measure_pairs(config, strategies, work, text, 6, seed)
    return {"runs": encode(runs), "device": device, "notes": notes}


def links():
    """Time two of the kinds: each of the others compiles two more programs per group."""
    kinds = link_benchmarks._kinds
    link_benchmarks._kinds = lambda axes, n: {
        kind: one for kind, one in kinds(axes, n).items() if kind in ("all-reduce", "p2p")
    }
    rows = link_benchmarks.measure_links("h100", (64,), on_progress=lambda line: None)
    return encode(tuple(rows))


def late(index):
    """Let process 1's steps end later by its own clock."""
    timed = measuring.timed
    measuring.timed = lambda *args: [t + LATE_S * index for t in timed(*args)]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
