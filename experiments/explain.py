"""Explain what the compiler made of a sharded program, by source line, and what would help.

  parallax explain FILE.hlo
  parallax explain FILE.hlo --mesh=data=2,tensor=8 --out=why
  parallax explain --paper=ring_sp --strategies=ring_sequence --phase=train
  parallax explain --model=two_level --strategies=data_parallel --batch=64 --seq_len=32768

FILE is the text of a scheduled CUDA module: `compiled.as_text()` in JAX, or the
*after_optimizations.txt of XLA_FLAGS=--xla_dump_to=DIR. The program may be anyone's; a text has no
warnings of the partitioner, and no change is tried. For your own function, where changes are tried
by compiling them, call px.explain in Python. Without FILE the program of one of our strategies is
compiled and explained.

Hardware: any; nothing is run. Our strategies need the `aot` extra, and no GPU.
Result: findings, most lost first; what is needed, with its closed form; the largest arrays and the
FLOPs by source line; splits of arguments and results. With --out=DIR report.html and
explanation.json, with --json=FILE the record alone.
Exit status: 0 ok; 2 bad input.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from parallax.commands.explain import explain_text
from parallax.experiments.dump import mesh_words, parse_trips, read_dump, trips_option
from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines, check_file, save_file
from parallax.experiments.output import show
from parallax.report import check_writable
from parallax.report.explanation import WIDTH, Explanation
from parallax.requests import shared
from parallax.requests.compare import CompareRequest
from parallax.requests.option import option

_OF_A_STRATEGY = (
    "paper", "model", "strategies", "batch", "seq_len", "microbatches", "dtype", "small", "phase",
    "remat", "budget",
)  # fmt: skip


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    hlo: str | None = option(
        None, "Text of a scheduled CUDA module; also without --hlo=.", positional=True
    )
    cluster: str | None = shared.cluster(
        "nodes of eight H100, or the paper's", "What the cost is estimated for"
    )
    mesh: str | None = option(None, mesh_words() + " Of a strategy: stage=2,tensor=8 or the like.")
    trips: tuple[str, ...] = trips_option()
    network: str | None = shared.network()
    rates: str | None = shared.rates()
    paper: str | None = shared.paper()
    model: str | None = shared.model()
    strategies: tuple[str, ...] | None = option(
        None, "The strategy: a name (`parallax list strategies`) or a strategy file (.json).",
        "list",
    )  # fmt: skip
    batch: int | None = shared.batch(None, " Unset: the paper's, or 16.")
    seq_len: int | None = shared.seq_len(None, " Unset: the paper's, or 1024.")
    microbatches: int | None = shared.microbatches("the paper's")
    dtype: str | None = shared.dtype()
    small: bool = shared.small()
    phase: str = option(
        "prefill", "What to compile: a forward pass, a decoding step or a training step.", "choice",
        choices=("prefill", "decode", "train"),
    )  # fmt: skip
    remat: str = shared.remat(" Only with --phase=train.")
    budget: float = option(
        55.0,
        "Seconds that all may take, changes that may help too; 0 tries none.",
        "number",
        unit="s",
    )
    out: str | None = option(None, "Folder for report.html and explanation.json. Unset: none.")
    json: str | None = shared.json_file()

    def unused(self) -> Mapping[str, str]:
        """Return the flags that a text, or a strategy, ignores, each with the reason."""
        if self.hlo is not None:
            return dict.fromkeys(_OF_A_STRATEGY, "a text is explained, which is one program")
        found = {"trips": "a strategy knows its own"}
        if self.phase != "train":
            found["remat"] = f"phase {self.phase} has no backward pass that recomputes anything"
        return found


def main(flags: Flags) -> int:
    """Explain the program that the flags name."""
    check_file(flags.json)
    if flags.out is not None:
        check_writable(flags.out)
    explanation = _of_text(flags) if flags.hlo is not None else _of_strategy(flags)
    if flags.json is not None:
        save_file(flags.json, json.dumps(explanation.to_dict(), indent=1) + "\n")
    written = () if flags.out is None else explanation.save(flags.out)
    show(explanation.table(), WIDTH)
    if written:
        print(f"\nwritten: {', '.join(map(str, written))}")
    return 0


def _of_text(flags: Flags) -> Explanation:
    assert flags.hlo is not None
    return explain_text(
        read_dump(flags.hlo),
        cluster=flags.cluster,
        network=flags.network,
        mesh=flags.mesh,
        trips=parse_trips(flags.trips),
        rates=flags.rates,
    )


def _of_strategy(flags: Flags) -> Explanation:
    from parallax.commands.explain_strategy import explain_strategy

    if flags.paper is None and flags.model is None:
        raise ValueError(
            "nothing to explain. Write parallax explain FILE.hlo, or --paper=NAME "
            "--strategies=NAME; for a function of your own call px.explain."
        )
    names = ("paper", "model", "strategies", "mesh", "batch", "seq_len", "microbatches", "dtype",
             "small", "phase", "remat", "cluster", "network", "rates")  # fmt: skip
    request = CompareRequest(**{name: getattr(flags, name) for name in names})
    request.refuse_unused(flags.given & set(names) - {"rates"})
    with ProgressLines() as progress:
        return explain_strategy(request, flags.budget, progress)
