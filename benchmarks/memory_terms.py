"""Measure what rematerialisation, donation and fusion save, compiled at the papers' full size.

  python benchmarks/memory_terms.py benchmarks/cpu/memory_terms.json

Hardware: any machine with the `aot` extra; no GPU. Result: for `cache_layerwise` and
`compressed_layerwise`, under layer-wise stages and the baseline, bytes of one device before and
after each, beside the 75 %, 20 % and 80 % of the paper. About ten minutes on one core.
"""

import datetime
import json
import sys
from importlib.metadata import version

from parallax.papers import paper
from parallax.papers.memory_record import MemoryRecord, read_memory_record
from parallax.studies.memory_ablation import memory_terms

PAPERS = ("cache_layerwise", "compressed_layerwise")
STRATEGIES = ("layerwise", "tensor_pipeline")


def main(path: str) -> None:
    rows, checks = [], []
    for name in PAPERS:
        for strategy in STRATEGIES:
            of_program = memory_terms(name, strategy, lambda line: print(line, flush=True))
            rows += of_program[0]
            checks += of_program[1]
    record = MemoryRecord(
        date=datetime.date.today().isoformat(),
        command=f"python benchmarks/memory_terms.py {path}",
        versions={name: version(name) for name in ("jax", "jax-cuda12-plugin", "optax")},
        cluster=paper(PAPERS[0]).cluster,
        checks=tuple(checks),
        rows=tuple(rows),
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(record.to_dict(), indent=1) + "\n")
    for row in read_memory_record(path).rows:
        print(
            f"{row.paper}, {row.strategy}, {row.program}: {row.term} ({row.after}): "
            f"{row.before_bytes / 1e9:.3f} to {row.after_bytes / 1e9:.3f} GB {row.counted}, "
            f"{row.saved_percent:.1f} % (the paper says {row.claimed_percent:g} %)"
        )


if __name__ == "__main__":
    main(sys.argv[1])
