"""Continue prompts under any partitioning strategy, and see that it is fast and the same text.

  parallax generate --model=FOLDER --prompt="Once upon a time" --max_new_tokens=64
  parallax generate --model=FOLDER --strategy=ring_sequence --mesh=seq=4 --virtual --prompt="Hello"
  parallax generate --model=FOLDER --prompt="One" --prompt="Two" --temperature=0.8 --top_p=0.95
  parallax generate --model=FOLDER --compression=int8,int8+2:4 --prompt="Hello"
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
from parallax.experiments.devices import use_devices
from parallax.experiments.launch import ProgressLines, check_file

FLAGS = (
    flags.MODEL, flags.STRATEGY, flags.MESH, flags.PROMPT, flags.PROMPTS, flags.MAX_NEW_TOKENS,
    flags.TEMPERATURE, flags.TOP_K, flags.TOP_P, flags.SEED, flags.STOP_TOKENS, flags.CACHE_LEN,
    flags.DTYPE, flags.COMPRESSION, flags.SMALL, flags.VIRTUAL, flags.JSON,
)  # fmt: skip


def main() -> int:
    """Generates what the flags ask for."""
    request = _request()
    if flags.JSON.value is not None:
        check_file(flags.JSON.value)
    use_devices(request["strategy"], request["mesh"], flags.VIRTUAL.value, request["dtype"])
    from parallax.engine.texts import generate

    alone = len(request["prompts"]) == 1
    with ProgressLines() as progress:

        def on_text(prompt: int, text: str) -> None:
            if alone:  # of several, each comes when all are done
                progress.stop()
                print(text, end="", flush=True)

        found = generate(**request, on_text=on_text, on_progress=progress)
    if alone:
        print()
    else:
        for number, text in enumerate(found.texts):
            print(f"[{number}] {text}")
    generation = found.generation
    for line in (*generation.notes, *generation.latency.lines()):
        print(line, file=sys.stderr)
    if flags.JSON.value is not None:
        record = {"request": request, "texts": found.texts} | dataclasses.asdict(generation)
        Path(flags.JSON.value).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


def _request() -> dict[str, Any]:
    if flags.MODEL.value is None:
        raise ValueError("--model is missing. Give a folder, or a paper's name with --small.")
    prompts = list(flags.PROMPT.value or ())
    if flags.PROMPTS.value is not None:
        try:
            text = Path(flags.PROMPTS.value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ValueError(
                f"--prompts={flags.PROMPTS.value}: {why}. Give a UTF-8 text file."
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
        "compression": flags.compression(),
        "small": flags.SMALL.value,
    }
