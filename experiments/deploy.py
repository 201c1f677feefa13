"""Deploy a model layer by layer, lose devices while it serves, and see that no token changes.

  parallax deploy --model=compressed_layerwise --small --virtual --spares=1 --losses=20
  parallax deploy --model=compressed_layerwise --small --virtual --losses=20 --switches=100
  parallax deploy --model=FOLDER --devices=4 --virtual --lose=2 --layer_formats=0-3=int8,int8+2:4
  parallax deploy --model=COMPRESSED_FOLDER --devices=4 --virtual --losses=20
  parallax deploy --model=FOLDER --device_budget=40MB --rule=greedy --devices=8 --virtual

Each device holds a contiguous group of layers and runs its own program; every layer may have its
own formats; a folder of parallax compress keeps those it has. A loss is simulated: the device's
buffers are deleted and reads refused. With a spare its group moves there, without one layers are
placed again; lost keys and values are computed again from the tokens so far. A switch takes a layer
to formats prepared beforehand, and back.

Hardware: the devices at hand; with --virtual, virtual CPU devices: one a layer (16 at most) and the
spares, or --devices. On the CPU the dtype is float64 unless --dtype says otherwise.
Result: the layout, time to resume by part, time to switch, each beside a modelled H100 at the
paper's full size; out/deploy.json.
Exit status: 0 ok; 1 a request was lost or a token changed; 2 bad input.
"""

import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from parallax.experiments import flags
from parallax.experiments.launch import ProgressLines
from parallax.report import check_writable

WIDTH = 110
_MOST_VIRTUAL = 16
FLAGS = (
    flags.MODEL, flags.PROMPT, flags.MAX_NEW_TOKENS, flags.DEVICES, flags.SPARES,
    flags.DEVICE_BUDGET, flags.RULE, flags.COMPRESSION, flags.LAYER_FORMATS, flags.STRONGER,
    flags.WAVES, flags.LOSE, flags.LOSSES, flags.SWITCHES, flags.SEED, flags.DTYPE, flags.SMALL,
    flags.VIRTUAL, flags.OUT,
)  # fmt: skip


def main() -> int:
    """Deploys what the flags ask for."""
    model = flags.MODEL.value
    if model is None:
        raise ValueError("--model is missing. Give a folder, or a paper's name with --small.")
    try:
        lose = [int(d) for d in flags.LOSE.value or ()]
    except ValueError as error:
        raise ValueError(f"--lose: {error}. Give device numbers, separated by commas.") from None
    check_writable(flags.OUT.value)
    budget = _budget()
    dtype = _use_devices(model)
    from parallax.comparing import versions
    from parallax.engine.deployment.deploying import PROMPTS, deploy
    from parallax.engine.deployment.layout import Rule

    with ProgressLines() as progress:
        record = deploy(
            model,
            flags.PROMPT.value or PROMPTS,
            devices=flags.DEVICES.value,
            spares=flags.SPARES.value,
            budget=budget,
            rule=cast(Rule, flags.RULE.value),
            compression=flags.compression(),
            layer_formats=flags.LAYER_FORMATS.value or (),
            stronger=flags.STRONGER.value,
            max_new_tokens=flags.MAX_NEW_TOKENS.value,
            waves=flags.WAVES.value,
            lose=lose,
            losses=flags.LOSSES.value,
            switches=flags.SWITCHES.value,
            seed=flags.SEED.value,
            small=flags.SMALL.value,
            dtype=dtype,
            on_progress=progress,
        )
    data = {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["parallax", "deploy", *sys.argv[2:]]),
        "versions": versions(),
        **record.to_dict(),
    }
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in _tables(data):
        console.print(table)
        console.print()
    for line in _lines(data):
        print(line)
    path = Path(flags.OUT.value) / "deploy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {path}")
    return 0 if record.exact and data["setup"]["equals_unsharded"] is not False else 1


def _use_devices(model: str) -> Any:
    """Virtual ones where asked for; the dtype to run in."""
    import jax

    from parallax.engine.deployment.deploying import deployed_model
    from parallax.lenses.environment import virtual_devices

    config, _, stored = deployed_model(model, small=flags.SMALL.value)
    if flags.VIRTUAL.value:
        fitting = min(config.num_layers, _MOST_VIRTUAL) + flags.SPARES.value
        virtual_devices(flags.DEVICES.value or fitting)
    dtype = flags.DTYPE.value
    if dtype is None and stored is None and jax.devices()[0].platform == "cpu":
        dtype = "float64"
    if "float64" in (dtype, config.dtype):
        jax.config.update("jax_enable_x64", True)
    return dtype


def _budget() -> int | None:
    if flags.DEVICE_BUDGET.value is None:
        return None
    from parallax.meshes.gpus import GPUS
    from parallax.placement import parse_budget

    return parse_budget(flags.DEVICE_BUDGET.value, GPUS["h100"]).n_bytes


def _table(title: str, *heads: str) -> Table:
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right")
    return table


def _tables(data: dict[str, Any]):
    setup = data["setup"]
    layout = _table("layout", "device", "layers", "formats", "weights MB", "KV MB", "ends MB")
    for row in setup["layout"]:
        first, last = row["layers"]
        layout.add_row(
            str(row["device"]), str(first) if first == last else f"{first}-{last}",
            " ".join(",".join(pair) for pair in row["formats"]),
            *(f"{row[k] / 1e6:.3f}" for k in ("weight_bytes", "kv_bytes", "end_bytes")),
        )  # fmt: skip
    yield layout
    modelled = data["modelled"]
    if times := data["losses"]["times"]:
        table = _table(
            f"time to resume, ms ({len(data['losses']['trials'])} simulated losses)",
            "part", "p50", "p90", "p99", "max", "H100, modelled: p50", "max",
        )  # fmt: skip
        for name, row in times.items():
            priced = modelled["losses"].get(name)
            there = _ms(priced, "p50", "max") if priced else ["", ""]
            table.add_row(name.removesuffix("_s"), *_ms(row, "p50", "p90", "p99", "max"), *there)
        yield table
    if data["switches"]:
        table = _table("time to switch a layer, ms", "prepared on", "count", "p50", "p90", "p99",
                       "max", "H100, modelled")  # fmt: skip
        for where, found in data["switches"].items():
            price = 1e3 * modelled["switch"]["there"][f"from_{where}_s"]
            table.add_row(where, str(found["count"]), *_ms(found["seconds"], "p50", "p90", "p99",
                          "max"), f"{price:.3g}")  # fmt: skip
        yield table


def _ms(row: dict[str, float], *names: str) -> list[str]:
    return [f"{1e3 * row[name]:.3g}" for name in names]


def _lines(data: dict[str, Any]):
    setup, trials, modelled = data["setup"], data["losses"]["trials"], data["modelled"]
    same = {
        True: "the unsharded model's tokens",
        False: "NOT the unsharded model's tokens",
        None: "not held against the unsharded model: no dense weights stand for w8a8",
    }[setup["equals_unsharded"]]
    yield f"{setup['new_tokens']} new tokens in {setup['model']['dtype']}: {same}"
    if trials:
        lost = sum(t["lost_requests"] for t in trials)
        changed = sum(t["changed_tokens"] for t in trials)
        yield f"losses: {len(trials)}; {lost} requests lost, {changed} with changed tokens"
        first, ahead = data["losses"]["unprepared"], sum(t["compiled_programs"] for t in trials)
        yield (
            f"programs compiled while requests waited: {first['compiled_programs']} in "
            f"{first['compile_s']:.3g} s before anything was prepared, {ahead} after "
            f"({setup['compile_ahead_s']:.3g} s of compiling ahead)"
        )
    if data["switches"]:
        claim = data["claimed"]
        yield f"claimed for a switch: below {claim['below']:g} {claim['unit']} ({claim['paper']})"
    yield (
        f"modelled: {modelled['model']} in {modelled['dtype']}, {modelled['batch']} sequences of "
        f"{modelled['tokens']} tokens, H100"
    )
    yield from (f"  {line}" for line in modelled["assumed"])
