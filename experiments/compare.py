"""Compare partitioning strategies: exact? fits? what moves against the minimum? how fast at best?

  parallax compare --paper=ring_sp
  parallax compare --paper=all
  parallax compare --paper=ring_sp --cluster=h100_nvl16
  parallax compare --model=two_level --strategies=data_parallel --batch=64 --seq_len=32768
  parallax compare --paper=two_level --phase=train --microbatches=128 --schedule=1f1b
  parallax compare --paper=compressed_layerwise --phase=decode --compression=int8,int8+2:4
  parallax compare --strategies=ring_sequence+data_parallel --mesh=data=2,seq=8 --model=ring_sp
  parallax compare --paper=ring_sp --sweep=seq_len:4k..128k
  parallax compare --paper=ring_sp --sweep=devices:2..64
  parallax compare --paper=ring_sp --rates=out/rates.json
  parallax compare --paper=ring_sp --lenses=measure --profile
  parallax compare --from_report=out/report.json --cluster=h200_2x8

Four lenses look at the same program. verify runs a small model on 16 virtual CPU devices and
compares logits and gradients with the unsharded model. compile builds the CUDA program of the
full-size model, and reads memory and every collective off it (needs the `aot` extra). predict
estimates its time and energy. measure times it on the devices at hand, if --lenses names it; with
--distributed it is the only lens and takes the devices of all processes.

Hardware: any Linux laptop, no GPU.
Result: a table, out/report.json and out/report.html; about a minute on two cores.
Exit status: 0 ok; 1 a strategy is not exact, does not fit, sends other bytes than its closed form,
or cannot run while others do; 2 bad input, or no strategy that can run; 3 with --distributed:
another process was lost, or they did not meet.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from parallax.commands.compare import run_papers
from parallax.commands.comparing import run_comparisons
from parallax.commands.resolve import resolve
from parallax.distributed.agreement import together
from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.experiments.output import on_first, show
from parallax.papers import PAPERS
from parallax.report import Report, check_writable, load_request, overview_table
from parallax.requests import shared
from parallax.requests.compare import CompareRequest
from parallax.requests.option import nested, option
from parallax.requests.processes import ProcessesRequest

WIDTH = 100
ALL = "all"  # as --paper: every paper on one page


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    request: CompareRequest = nested(CompareRequest)
    strategy: str | None = option(
        None, "One strategy, in place of --strategies: a name or a strategy file (.json)."
    )
    out: str = shared.out("Folder for report.json and report.html.")
    from_report: str | None = option(
        None,
        "A report.json whose request is run again. Flags that are given beside it replace what it "
        "asked for.",
    )
    processes: ProcessesRequest = nested(ProcessesRequest)

    def check(self) -> None:
        """Check the flags of processes; `_request` knows the whole request and checks that."""
        self.processes.refuse_unused(self.given)


def main(flags: Flags) -> int:
    """Run the comparison that the flags ask for."""
    on_first("the folder of results", lambda: check_writable(flags.out))
    request = together("the request", lambda: _request(flags))
    if request.paper == ALL:
        return _all_papers(request, flags.out)
    with ProgressLines() as progress:
        resolved = replace(resolve(request), profile=_profile(request, flags.out))
        (report,) = run_comparisons([resolved], on_progress=progress)
    try:
        written = on_first("the report", lambda: report.save(flags.out))
    finally:  # what was found is shown on a full disk too
        show(report.table(), WIDTH)
    if written is not None:
        print(f"\nwritten: {', '.join(map(str, written))} ({report.seconds:.0f} s)")
    return report.exit_status


def _all_papers(request: CompareRequest, out: str) -> int:
    """Show all papers on one page, and save each one's report in a folder of its own."""
    profiles = {name: _profile(request, f"{out}/{name}") for name in PAPERS}
    with ProgressLines() as progress:
        reports = run_papers(request, profiles=profiles, on_progress=progress)
    try:
        on_first("the reports", lambda: _save_all(reports, out))
    finally:
        show(overview_table(reports), WIDTH)
    print(f"\nwritten: {out}/<paper>/report.html, .json ({reports[0].seconds:.0f} s)")
    return max(report.exit_status for report in reports)


def _save_all(reports: list[Report], out: str) -> None:
    for report in reports:
        assert report.paper is not None
        report.save(Path(out) / report.paper.name)


def _profile(request: CompareRequest, out: str | Path) -> Path | None:
    """Return the folder of the traces beside the report; None where none are asked for."""
    return Path(out).absolute() / "profile" if request.profile else None


def _request(flags: Flags) -> CompareRequest:
    """Return the request of the flags, or that of a report with the given flags applied."""
    if {"strategy", "strategies"} <= flags.given:
        raise ValueError("--strategy and --strategies are both given. Use one of them.")
    request, given = flags.request, flags.given
    if flags.strategy is not None:
        request, given = request.replace(strategies=(flags.strategy,)), given | {"strategies"}
    if flags.from_report is not None:
        context = f"--from_report={flags.from_report}"
        asked = CompareRequest.from_dict(load_request(flags.from_report), context)
        names = given & {field.name for field in fields(CompareRequest)}
        request = asked.replace(**{name: getattr(request, name) for name in names})
    request.refuse_unused(given)
    return request
