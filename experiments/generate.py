"""Continue prompts with a model under any partitioning strategy; the text is always the same.

  parallax generate --model=FOLDER --prompt="Once upon a time" --max_new_tokens=64
  parallax generate --model=FOLDER --strategy=ring_sequence --mesh=seq=4 --virtual --prompt="Hello"
  parallax generate --model=FOLDER --prompt="One" --prompt="Two" --temperature=0.8 --top_p=0.95
  parallax generate --model=FOLDER --compression=int8,int8+2:4 --prompt="Hello"
  parallax generate --model=ring_sp --small --strategy=tensor_pipeline --virtual --prompt="def f("

FOLDER holds config.json, *.safetensors and tokenizer.json of a published model, of a family that
`parallax list families` names. A paper's name with --small is its model at a laptop's width, with
random weights.

Hardware: the devices at hand; with --virtual, virtual CPU devices, whose times compare nothing;
with --distributed, those of all processes, each started with this command (docs/cluster.md).
Result: the text on standard output as it is generated; TTFT, TPOT and ITL (as MLPerf defines them),
tokens/s and what was padded on standard error; with --json=FILE all of it in a file.
Exit status: 0 ok; 2 bad input; 3 with --distributed: another process was
lost, or they did not meet.
"""

import json
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from parallax.distributed.agreement import together
from parallax.distributed.processes import is_first
from parallax.experiments.devices import use_devices
from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines, check_file, save_file
from parallax.requests import shared
from parallax.requests.generate import GenerateRequest
from parallax.requests.option import nested, option
from parallax.requests.processes import ProcessesRequest


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    request: GenerateRequest = nested(GenerateRequest)
    prompts: str | None = option(None, "A UTF-8 file with one prompt per line.")
    virtual: bool = shared.virtual()
    json: str | None = shared.json_file()
    processes: ProcessesRequest = nested(ProcessesRequest)


def main(flags: Flags) -> int:
    """Continue the prompts that the flags give."""
    request = flags.request
    given = together("prompts", lambda: _from_file(flags.prompts))
    prompts = (*request.prompts, *given)
    if not prompts:
        raise ValueError(
            "no prompt. Give --prompt=TEXT (several times for a batch) or --prompts=FILE."
        )
    request = replace(request, prompts=prompts)
    together("--json", lambda: check_file(flags.json if is_first() else None))
    use_devices(request.strategy, request.mesh, flags.virtual, request.dtype)
    from parallax.engine.texts import run_generation

    alone = len(prompts) == 1
    with ProgressLines() as progress:

        def on_text(prompt: int, text: str) -> None:
            if alone:  # several are printed once all are done
                progress.stop()
                print(text, end="", flush=True)

        generated = run_generation(request, on_text=on_text, on_progress=progress)
    generation = generated.generation
    print(
        "\n" if alone else "".join(f"[{n}] {text}\n" for n, text in enumerate(generated.texts)),
        end="",
    )
    for line in (*generation.notes, *generation.latency.lines()):
        print(line, file=sys.stderr)
    if flags.json is not None and is_first():
        asked = {field.name: getattr(request, field.name) for field in fields(request)}
        record = {"request": asked, "texts": generated.texts} | asdict(generation)
        save_file(flags.json, json.dumps(record, indent=2) + "\n")
    return 0


def kept(flags: Flags) -> str:
    """Return what an interrupted run leaves: the text so far, on standard output."""
    rest = "" if flags.json is None else f"; {flags.json} was not written"
    return f"what was printed is all that was generated{rest}"


def _from_file(name: str | None) -> list[str]:
    """Read one prompt from each line that is not empty."""
    if name is None:
        return []
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ValueError(f"--prompts={name}: {why}. Give a UTF-8 text file.") from None
    return [line for line in text.splitlines() if line]
