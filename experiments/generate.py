"""Continue prompts under any partitioning strategy, and see that it is fast and the same text.

  parallax generate --model=FOLDER --prompt="Once upon a time" --max_new_tokens=64
  parallax generate --model=FOLDER --strategy=ring_sequence --mesh=seq=4 --virtual --prompt="Hello"
  parallax generate --model=FOLDER --prompt="One" --prompt="Two" --temperature=0.8 --top_p=0.95
  parallax generate --model=ring_sp --small --strategy=tensor_pipeline --virtual --prompt="def f("

FOLDER holds config.json, *.safetensors and tokenizer.json of a Llama, GPT-2, Qwen3 or Mixtral
model. A paper's name with --small is its model at a laptop's width with random weights.

Hardware: the devices at hand; with --virtual, virtual CPU devices, whose times compare nothing.
Result: the text on standard output as it comes; TTFT, TPOT, ITL (as MLPerf defines them), tokens/s
and what was padded on standard error; with --json=FILE all of it in a file.
Exit status: 0 ok; 2 bad input.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from parallax.experiments import flags
from parallax.experiments.launch import ProgressLines
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import cpu_environment
from parallax.naming import resolve_model, resolve_strategy

FLAGS = (
    flags.MODEL, flags.STRATEGY, flags.MESH, flags.PROMPT, flags.PROMPTS, flags.MAX_NEW_TOKENS,
    flags.TEMPERATURE, flags.TOP_K, flags.TOP_P, flags.SEED, flags.STOP_TOKENS, flags.CACHE_LEN,
    flags.DTYPE, flags.SMALL, flags.VIRTUAL, flags.JSON,
)  # fmt: skip
_VIRTUAL_DEVICES = 16
_TEXT = "\0"  # before a piece of text on the way from a child process


def main() -> int:
    """Generates what the flags ask for."""
    request = _request()
    with ProgressLines() as progress:
        printer = _Printer(len(request["prompts"]), progress)
        if flags.VIRTUAL.value:
            # Checked here, before a process is started for it.
            resolve_model(request["model"], dtype=request["dtype"], small=request["small"])
            strategy = resolve_strategy(request["strategy"], request["mesh"], _VIRTUAL_DEVICES)
            found = run_in_child(
                run, request,
                environment=cpu_environment(strategy.mesh.size, fast_code=True),
                on_progress=printer.line,
            )  # fmt: skip
        else:
            found = run(request, on_progress=printer.line)
    printer.finish(found.texts)
    generation = found.generation
    for line in (*generation.notes, *generation.latency.lines()):
        print(line, file=sys.stderr)
    if flags.JSON.value is not None:
        record = {"request": request, "texts": found.texts} | dataclasses.asdict(generation)
        Path(flags.JSON.value).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def run(request: dict[str, Any], *, on_progress) -> Any:
    """`px.generate` with its text among the lines of progress."""
    from parallax.engine.texts import generate

    return generate(
        **request,
        on_text=lambda prompt, text: on_progress(f"{_TEXT}{prompt} {text}"),
        on_progress=on_progress,
    )


class _Printer:
    """One prompt's text as it comes; of several, each when all are done."""

    def __init__(self, prompts: int, progress):
        self.prompts, self.progress = prompts, progress

    def line(self, line: str) -> None:
        if not line.startswith(_TEXT):
            self.progress(line)
        elif self.prompts == 1:
            self.progress.stop()
            print(line.partition(" ")[2], end="", flush=True)

    def finish(self, texts) -> None:
        if self.prompts == 1:
            print()
            return
        for number, text in enumerate(texts):
            print(f"[{number}] {text}")


def _request() -> dict[str, Any]:
    if flags.MODEL.value is None:
        raise ValueError("--model is missing. Give a folder, or a paper's name with --small.")
    prompts = list(flags.PROMPT.value or ())
    if flags.PROMPTS.value is not None:
        try:
            text = Path(flags.PROMPTS.value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"--prompts={flags.PROMPTS.value}: {error}. Give a text file."
            ) from None
        prompts += [line for line in text.splitlines() if line]
    if not prompts:
        raise ValueError(
            "no prompt. Give --prompt=TEXT (several times for a batch) or --prompts=FILE."
        )
    try:
        stop = (
            None if flags.STOP_TOKENS.value is None else [int(t) for t in flags.STOP_TOKENS.value]
        )
    except ValueError as error:
        raise ValueError(f"--stop_tokens: {error}. Give token ids, separated by commas.") from None
    return {
        "model": flags.MODEL.value,
        "prompts": prompts,
        "strategy": flags.STRATEGY.value,
        "mesh": flags.MESH.value,
        "max_new_tokens": flags.MAX_NEW_TOKENS.value,
        "temperature": flags.TEMPERATURE.value,
        "top_k": flags.TOP_K.value,
        "top_p": flags.TOP_P.value,
        "seed": flags.SEED.value,
        "stop_tokens": stop,
        "cache_len": flags.CACHE_LEN.value,
        "dtype": flags.DTYPE.value,
        "small": flags.SMALL.value,
    }
