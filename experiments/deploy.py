"""Deploy a model layer by layer, lose devices while it serves, and see whether a token changes.

  parallax deploy --model=compressed_layerwise --small --virtual --spares=1 --losses=20
  parallax deploy --model=compressed_layerwise --small --virtual --losses=20 --switches=100
  parallax deploy --model=FOLDER --devices=4 --virtual --lose=2 --layer_formats=0-3=int8,int8+2:4
  parallax deploy --model=compressed_layerwise --small --virtual --pressure
  parallax deploy --model=COMPRESSED_FOLDER --devices=4 --virtual --losses=20
  parallax deploy --model=FOLDER --device_budget=40MB --rule=greedy --devices=8 --virtual

Each device holds a contiguous group of layers and runs its own program; every layer may have its
own formats; a folder of parallax compress keeps those it has. A loss is simulated: the device's
buffers are deleted and reads refused. With a spare its group moves there, without one layers are
placed again; lost keys and values are computed again from the tokens so far. In float64 that
changes no token; in lower precision near-ties may fall otherwise, since they are computed again in
one pass. A switch takes a layer to formats prepared beforehand, and back.

Hardware: the devices at hand; with --virtual, virtual CPU devices: one a layer (16 at most) and the
spares, or --devices. On the CPU the dtype is float64 unless --dtype says otherwise.
Result: the layout, time to resume by part, time to switch, each beside a modelled H100 at the
paper's full size; bytes moved and tokens computed again; out/deploy.json.
Exit status: 0 ok; 1 a request was lost or a token changed; 2 bad input.
"""

import datetime
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from parallax.experiments import flags
from parallax.experiments.launch import ProgressLines
from parallax.report import check_writable
from parallax.report.facts import Cell
from parallax.report.grid import Grid, Heads, grid_table

WIDTH = 110
_SPREAD = ("p50", "p90", "p99", "max")
_TIMES: Heads = tuple((name, "measured") for name in _SPREAD)
_LAYOUT: Heads = (
    ("device", None), ("layers", None), ("formats", None), ("weights MB", "measured"),
    ("KV MB", "derived"), ("ends MB", "measured"),
)  # fmt: skip
_RESUME: Heads = (("part", None), *_TIMES, ("H100 p50", "modelled"), ("H100 max", "modelled"))
_MOVED: Heads = (
    ("lost", None), ("moved layers", None), ("host to device MB", "measured"),
    ("device to device MB", "measured"), ("recomputed tokens", "measured"),
    ("recomputed layers", "measured"),
)  # fmt: skip
_SWITCHED: Heads = (
    ("prepared on", None), ("count", None), ("host to device MB", "measured"), *_TIMES,
    ("H100", "modelled"),
)  # fmt: skip
_PRESSURE: Heads = (
    ("before token", None), ("layer", None), ("device", None), ("to", None), ("why", None),
    ("host to device MB", "measured"), ("ms", "measured"),
)  # fmt: skip
_MOST_VIRTUAL = 16
FLAGS = (
    flags.MODEL, flags.PROMPT, flags.MAX_NEW_TOKENS, flags.DEVICES, flags.SPARES,
    flags.DEVICE_BUDGET, flags.RULE, flags.COMPRESSION, flags.LAYER_FORMATS, flags.STRONGER,
    flags.MICROBATCHES, flags.LOSE, flags.LOSSES, flags.SWITCHES, flags.PRESSURE, flags.SEED,
    flags.DTYPE, flags.SMALL, flags.VIRTUAL, flags.OUT,
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
            microbatches=flags.MICROBATCHES.value or 1,
            lose=lose,
            losses=flags.LOSSES.value,
            switches=flags.SWITCHES.value,
            pressure=flags.PRESSURE.value,
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
    for grid in _grids(data):
        console.print(grid_table(grid))
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


def _grids(data: dict[str, Any]) -> Iterator[Grid]:
    trials, modelled = data["losses"]["trials"], data["modelled"]
    yield Grid("layout", _LAYOUT, tuple(map(_layout_row, data["setup"]["layout"])))
    if times := data["losses"]["times"]:
        rows = []
        for name, row in times.items():
            priced = modelled["losses"].get(name)
            there = _ms(priced, "p50", "max") if priced else ["", ""]
            rows.append(_row(name.removesuffix("_s"), *_ms(row, *_SPREAD), *there))
        yield Grid(f"time to resume, ms ({len(trials)} simulated losses)", _RESUME, tuple(rows))
        moved = tuple(map(_moved_row, trials))
        yield Grid("moved and computed again, each loss", _MOVED, moved)
    if data["switches"]:
        rows = []
        for where, found in data["switches"].items():
            price = 1e3 * modelled["switch"]["there"][f"from_{where}_s"]
            megabytes = f"{found['copied_bytes'] / 1e6:.3f}"
            times = _ms(found["seconds"], *_SPREAD)
            rows.append(_row(where, str(found["count"]), megabytes, *times, f"{price:.3g}"))
        yield Grid("time to switch a layer, ms", _SWITCHED, tuple(rows))
    if data["pressure"] is not None:
        rows = tuple(map(_pressure_row, data["pressure"]))
        yield Grid("switches by themselves, as keys and values grow", _PRESSURE, rows)


def _layout_row(row: dict[str, Any]) -> tuple[Cell, ...]:
    first, last = row["layers"]
    layers = str(first) if first == last else f"{first}-{last}"
    formats = " ".join(",".join(pair) for pair in row["formats"])
    sizes = (f"{row[k] / 1e6:.3f}" for k in ("weight_bytes", "kv_bytes", "end_bytes"))
    return _row(str(row["device"]), layers, formats, *sizes)


def _moved_row(trial: dict[str, Any]) -> tuple[Cell, ...]:
    sizes = (f"{trial[f'{k}_bytes'] / 1e6:.3f}" for k in ("host_to_device", "device_to_device"))
    again = (str(trial[f"recomputed_{k}"]) for k in ("tokens", "layers"))
    lost, layers = (", ".join(map(str, trial[k])) for k in ("lost", "moved_layers"))
    return _row(lost, layers, *sizes, *again)


def _pressure_row(made: dict[str, Any]) -> tuple[Cell, ...]:
    now, megabytes = ",".join(made["now"]), f"{made['copied_bytes'] / 1e6:.3f}"
    where = (str(made[k]) for k in ("number", "layer", "device"))
    return _row(*where, now, made["reason"], megabytes, *_ms(made, "seconds"))


def _row(*texts: str) -> tuple[Cell, ...]:
    return tuple(map(Cell, texts))


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
