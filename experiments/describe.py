"""Describe a training step, or serving, as other people's software runs it: time and memory.

  parallax describe --model=FOLDER --split=data=2,tensor=8 --batch=256 --seq_len=4096
  parallax describe --model=FOLDER --split=data=16 --zero=1 --batch=256 --seq_len=4096
  parallax describe --model=FOLDER --phase=serve --split=tensor=8 --batch=16 --prompt_len=4096

--implementation names the software (megatron; vllm in serving): `parallax list implementations`.
--microbatches, --recompute, --cluster=h100_2x8@efa and --output_len say the rest.

Where plan and compare judge Parallax's own programs, this says what Megatron, nanotron, vLLM and
others would take: the same products, passes over memory and collectives, with their launches,
overlaps and kernels. The constants are fitted to published measurements; `parallax validate` shows
how far off they are, and holds them against your own.

Hardware: any; nothing is compiled. Result: time by term, memory by purpose, with 80 % error bars
from measurements that were not fitted; with --json=FILE in a file. Milliseconds.
Exit status: 0 ok; 1 it does not fit in memory; 2 bad input.
"""

import json
from dataclasses import dataclass

from parallax.commands.describe import run_describe
from parallax.experiments.flags import Command
from parallax.experiments.launch import check_file, save_file
from parallax.requests import shared
from parallax.requests.describe import DescribeRequest
from parallax.requests.option import nested


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    request: DescribeRequest = nested(DescribeRequest)
    json: str | None = shared.json_file()


def main(flags: Flags) -> int:
    """Describe the step that the flags name."""
    check_file(flags.json)
    found = run_describe(flags.request)
    save_file(flags.json, json.dumps(found.to_dict(), indent=1) + "\n")
    print(found)
    return 1 if found.fits is False else 0
