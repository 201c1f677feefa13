"""The texts of JAX 0.4 to 0.12, for CPUs and for GPUs: all are read, and count what was written."""

import gzip
import re
from pathlib import Path

import pytest

from parallax.commands.inspect import inspect_text
from parallax.hlo import parse_module

DATA = Path(__file__).parent / "data"
FILES = sorted((DATA / "versions").glob("*.txt.gz"))


def _texts(file):
    whole = gzip.decompress(file.read_bytes()).decode()
    names = re.split(r"^=== (.*)\n", whole, flags=re.MULTILINE)[1:]
    return dict(zip(names[::2], names[1::2], strict=True))


TEXTS = {(f.name.removesuffix(".txt.gz"), n): t for f in FILES for n, t in _texts(f).items()}
ALL = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# Per device, as the jaxprs have them: rows of 256, 256 or 1024 / 4 columns, three layers.
COUNTS = {
    "mlp": (3 * 2 * 2 * 256 * 256 * 256, {"all-reduce": (3, 3)}),
    "five": (0, dict.fromkeys(ALL, (1, 1))),
    "auto": (2 * 2 * 256 * 256 * 256, {"all-reduce": (1, 1)}),
    "until": (2 * 256**3, {"all-reduce": (1, 1)}),
    "branch": (2 * 256**3, {"all-reduce": (0, 1)}),
    # Before partitioning: the arrays outside shard_map are whole, and nothing is sent for them.
    "auto before": (2 * 2 * 512 * 256 * 1024, {}),
}  # fmt: skip


def test_every_supported_version_is_here():
    versions = {name.rpartition("-")[0].rpartition(".")[0] for name, _ in TEXTS}
    assert versions >= {"0.4", "0.5", "0.6", "0.7", "0.9", "0.11", "0.12.0"}
    assert {name.rpartition("-")[2] for name, _ in TEXTS} == {"cpu", "cuda"}
    assert len(TEXTS) == 7 * 10 + 5 * 5


@pytest.mark.parametrize(("version", "program"), TEXTS)
def test_a_text_is_read_and_counts_what_its_jaxpr_does(version, program):
    text, platform = TEXTS[version, program], version.rpartition("-")[2]
    flops, sent = COUNTS.get(program, COUNTS[program.removesuffix(" before")])
    found = inspect_text(text)
    assert found.devices == 8
    assert found.gemm_flops == flops
    counts: dict[str, tuple[float, float]] = {}
    for c in found.ledger:
        low, high = counts.get(c.kind, (0, 0))
        counts[c.kind] = low + c.low_count, high + c.count
    assert counts == sent
    assert bool(found.ledger.open_loops) == program.startswith("until")
    if program.endswith(" before"):
        assert (found.platform, found.timed) == ("", None)
        assert "not scheduled" in found.untimed
        assert "whole arrays" in found.untimed
    elif platform == "cpu":
        assert (found.platform, found.timed) == ("cpu", None)
        assert "compiled for a CPU" in found.untimed
    else:
        assert found.platform == "cuda"
        assert found.timed is not None
        assert found.cost.seconds > 0
        assert found.untimed == ""


@pytest.mark.parametrize(("version", "program"), [k for k in TEXTS if k[1] == "mlp"])
def test_a_product_names_its_source_line(version, program):
    """In tables from 0.9 on, as source_file and source_line before."""
    module = parse_module(TEXTS[version, program])
    source = (DATA / "make_versions.py").read_text(encoding="utf-8").split("\n")
    lines = [
        (frame.file, source[frame.line - 1])
        for c in module.computations.values()
        for i in c.instructions
        if i.opcode in ("all-reduce", "all-reduce-start")
        for frame in module.frames(i)[:1]
    ]
    assert lines
    assert all(
        file == "make_versions.py" and "lax.psum(jax.nn.relu" in line for file, line in lines
    )
