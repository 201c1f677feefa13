"""Every page that the package writes, by name, from data that costs no compiling."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from parallax.commands.plan import plan
from parallax.models.config import ModelConfig
from parallax.papers import PAPERS
from parallax.papers.audit import audit
from parallax.report.explanation import Explanation
from parallax.report.search_page import SearchReport
from parallax.results.lens_results import Figure, Tag
from parallax.results.sweep_results import PointFigures, Sweep, SweepPoint
from parallax.search.results import Point, RegimeMap
from parallax.studies.claims_page import audit_page
from parallax.studies.quality.results import load_record
from parallax.studies.quality.tables import record_page
from parallax.studies.regimes import explorer
from parallax.studies.regimes.explored import Axes, tabulate
from parallax.studies.regimes.page import load
from parallax.studies.validation.results import Section, Validation
from parallax.studies.validation.scores import Judged
from tests.report import examples, test_profile_section, test_training

CPU = Path(__file__).parents[2] / "benchmarks" / "cpu"
SMALL = ModelConfig(
    name="small", num_layers=4, d_model=1024, num_heads=8, num_kv_heads=8, head_dim=128, d_ff=4096,
    vocab_size=32768, mlp="gated", dtype="bfloat16",
)  # fmt: skip


def of_paper(name: str) -> str:
    paper = PAPERS[name]
    return examples.report(paper=paper, config=paper.config, workload=paper.workload).html()


def failures() -> str:
    big = examples.ring_result(compilation=examples.compilation(memory=examples.too_big()))
    return examples.report(results=(examples.tensor_result(), big), paper=None).html()


def sweep() -> str:
    def figures(devices: int, rate: float) -> PointFigures:
        def figure(value, unit, tag: Tag = "modelled"):
            return Figure(value, unit, tag, 0.8 * value, 1.3 * value)

        step = examples.RING_SP.workload.tokens / rate
        return PointFigures(
            figure(160e9 / devices, "B", "compiled"), figure(78.1e9, "B", "assumed"),
            figure(1.2e12, "B", "compiled"), figure(1.1e12, "B", "derived"),
            figure(4e15, "1", "compiled"), figure(step, "s"), figure(rate, "tokens/s"), "network",
            True,
        )  # fmt: skip

    points = tuple(
        SweepPoint(name, n, "h100_2x8", f"seq={n}", examples.RING_SP.workload,
                   figures(n, base * n**power))
        for name, base, power in (("ring_sequence", 3e4, 0.9), ("tensor_pipeline", 6e4, 0.6))
        for n in (2, 4, 8, 16)
    )  # fmt: skip
    missing = SweepPoint("ring_sequence", 32, why_not="10,000 tokens are not divisible by 32")
    of = Sweep("devices", (2, 4, 8, 16, 32), "1,024 x 10,000 tokens", (*points, missing))
    return examples.report(results=(), sweep=of).html()


def explanation() -> str:
    return Explanation(examples.explained(Path(__file__))).to_html()


def validation() -> str:
    rows = tuple(
        Judged("table", "step", f"row {i}", 0.1 * i * (1 + 0.04 * (i % 7 - 3)), 0.1 * i,
               ("one node", "two nodes")[i % 2], i % 5, 0.08 * i, 0.13 * i, f"group {i // 5}",
               4096.0, 2 ** (i % 4))
        for i in range(1, 31)
    )  # fmt: skip
    section = Section("Time of a training step", "held out by fold", rows, ("A line.",))
    return Validation((section,), ("A note.",), shows_worst=True).page()


def serving() -> str:
    found = plan("ring_sp", batch=64, prompt_len=10_000, output_len=128, compile_top=0)
    assert isinstance(found, SearchReport)
    return replace(found, maps=(regime_map(),)).to_html()


def regime_map() -> RegimeMap:
    points = tuple(
        Point(x, y, {"ring_sequence": 1.0 + y / x, "data_parallel": 1.5 * x / (x + y)})
        for x in (1024, 4096, 16_384) for y in (1, 16, 256)
    )  # fmt: skip
    return RegimeMap("sequence length", "batch", "ring_sp on h100_2x8", points)


def training() -> str:
    return plan(SMALL, phase="train", batch=16, seq_len=2048, cluster="h100_1x4",
                compile_top=0).to_html()  # fmt: skip


# A corner of the explorer's table, which takes seconds.
CORNER = Axes(
    lengths=(2048, 4096, 8192), sizes=(1, 8), widths=(2048, 6144), bandwidths=(25.0, 100.0),
    devices=(8, 16), heads=(32,), experts=(0, 16),
)  # fmt: skip


@functools.cache
def corner_cases():
    return tabulate(CORNER, processes=1)


def explored() -> str:
    cases = corner_cases()
    return explorer.page(CORNER, cases, explorer.measure(CORNER, cases, count=5))


def claims() -> str:
    return audit_page({name: audit(paper) for name, paper in PAPERS.items()}, PAPERS)


PAGES: dict[str, Callable[[], str]] = {
    **{f"compare {name}": functools.partial(of_paper, name) for name in PAPERS},
    "compare of training": lambda: test_training.trained().html(),
    "compare with a profile": lambda: test_profile_section.report().html(),
    "compare of failures": failures,
    "sweep": sweep,
    "plan for serving": serving,
    "plan for training": training,
    "explain": explanation,
    "regimes": lambda: load(CPU / "regimes.json").page(),
    "regimes --explore": explored,
    "claims": claims,
    "validate": validation,
    "compress_quality": lambda: record_page(load_record(CPU / "compress_quality.json")),
}
