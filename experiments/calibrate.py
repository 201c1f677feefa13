"""Measure the GPU at hand and fit the cost model's constants to it.

  parallax calibrate --out=out
  parallax plan --model=ring_sp --batch=64 --prompt_len=10000 --rates=out/rates.json
  parallax compare --paper=ring_sp --rates=out/rates.json
  srun parallax calibrate --distributed --out=out

It measures about 40 matrix products, 10 attentions, copies, working sets around the size of the L2
cache, kernel launches, collectives if there are several GPUs, and power if NVML is installed (pip
install nvidia-ml-py). Some shapes are held out of the fit, to state the error of the constants.
With --distributed it also times collectives between nodes (one GPU of each node per group, all
groups at once), which give the network's constants, and those of all GPUs, which test the model.

Hardware: one or more GPUs of a kind that the cost model knows; nothing else should run on them.
Result: out/rates.json, to pass as --rates to the other experiments, and out/measured.json with
every measurement; the errors on held-out shapes are printed. At most five minutes; ten on several
nodes.
Exit status: 0 ok; 2 no such GPU, or bad input; 3 with --distributed: another process was
lost, or they did not meet.
"""

import json
from dataclasses import dataclass

from parallax.commands.calibrate import calibrate
from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.experiments.output import on_first
from parallax.report import check_writable
from parallax.report.files import save_files
from parallax.requests import shared
from parallax.requests.option import nested
from parallax.requests.processes import ProcessesRequest


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    out: str = shared.out("Folder for rates.json and measured.json.")
    processes: ProcessesRequest = nested(ProcessesRequest)


def main(flags: Flags) -> int:
    """Calibrate on the devices at hand."""
    on_first("the folder of results", lambda: check_writable(flags.out))
    with ProgressLines() as progress:
        calibration = calibrate(on_progress=progress)
    for term, (rows, median, p90) in calibration.held_out.items():
        print(f"{term}: {rows} held out, median {100 * median:.1f} %, p90 {100 * p90:.1f} %")
    files = {
        "rates.json": json.dumps(calibration.rates.to_dict(), indent=1) + "\n",
        "measured.json": json.dumps(calibration.to_dict(), indent=1) + "\n",
    }
    written = on_first("the rates", lambda: save_files(flags.out, files))
    if written is not None:
        print(f"written: {', '.join(str(path) for path in written)}")
    return 0
