"""Serve a model layer by layer, lose devices meanwhile, and check whether any token changes.

  parallax deploy --model=compressed_layerwise --small --virtual --spares=1 --losses=20
  parallax deploy --model=compressed_layerwise --small --virtual --losses=20 --switches=100
  parallax deploy --model=FOLDER --devices=4 --virtual --lose=2 --layer_formats=0-3=int8,int8+2:4
  parallax deploy --model=compressed_layerwise --small --virtual --pressure
  parallax deploy --model=COMPRESSED_FOLDER --devices=4 --virtual --losses=20
  parallax deploy --model=FOLDER --device_budget=40MB --rule=greedy --devices=8 --virtual

Each device holds a contiguous group of layers and runs its own program. Every layer may have its
own formats; a folder that parallax compress wrote keeps its own. A loss is simulated: the device's
buffers are deleted and reads are refused. If there is a spare, the lost group moves there;
otherwise all layers are placed again. Lost keys and values are recomputed from the tokens so far,
in one pass. In float64 that changes no token; in lower precision near-ties may be decided
differently. A switch takes a layer to formats prepared beforehand, and back.

Hardware: the devices at hand; with --virtual, virtual CPU devices: one per layer (16 at most) and
the spares, or --devices. On the CPU the dtype is float64 unless --dtype says otherwise.
Result: the layout, the parts of the time to resume and the time to switch, each beside a modelled
H100 at the paper's full size; bytes moved and tokens recomputed; out/deploy.json.
Exit status: 0 ok; 1 a request was lost or a token changed; 2 bad input.
"""

import datetime
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parallax.engine.deployment.layout import Rule
from parallax.experiments.flags import Command
from parallax.experiments.launch import ProgressLines
from parallax.experiments.output import show
from parallax.models.config import DType
from parallax.report import check_writable
from parallax.report.facts import Cell
from parallax.report.files import save_files
from parallax.report.grid import DataTable, Heads, grid_table
from parallax.requests import shared
from parallax.requests.option import option

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


@dataclass(frozen=True)
class Flags(Command):
    """The flags of this command."""

    model: str = shared.model("Give a folder, or a paper's name with --small.")
    prompt: tuple[str, ...] = option(
        (), "A text to continue; several times for a batch of any lengths.", "repeated"
    )
    max_new_tokens: int = option(
        64, "Tokens to generate for each prompt, at most.", "whole", unit="tokens", at_least=1
    )
    devices: int | None = option(
        None,
        "Number of devices, spares included. Unset: all, or with --virtual one per layer (16 at "
        "most) and the spares.",
        "whole", at_least=1,
    )  # fmt: skip
    spares: int = option(
        0, "How many of the devices wait until another one is lost.", "whole", at_least=0
    )
    device_budget: str | None = option(
        None,
        "Bytes of weights, keys and values that a device may hold: l2, smem, l2+smem (of an H100) "
        "or a number such as 50MB. Unset: no limit.",
    )
    rule: Rule = option(
        "optimal",
        "How layers are placed: optimal makes the slowest group as fast as possible; greedy is the "
        "papers' rule, a device takes layers as long as they fit.",
        "choice",
        choices=("optimal", "greedy"),
    )
    compression: str | None = shared.compression()
    layer_formats: tuple[str, ...] = shared.layer_formats()
    stronger: str = option(
        "int8+2:4",
        "Formats that --switches and --pressure take layers to: one, or attention's and the MLP's.",
    )
    microbatches: int = option(
        1, "Pieces of the batch: while one is on a device, the next is on the previous device.",
        "whole", at_least=1,
    )  # fmt: skip
    lose: tuple[int, ...] = option(
        (),
        "Numbers of devices to lose, one per run, separated by commas. Unset: drawn at random.",
        "whole list",
    )
    losses: int = option(
        0, "Number of runs that lose a device at a random time.", "whole", at_least=0
    )
    switches: int = option(
        0,
        "Number of switches of layers to --stronger and back while requests run, once with the "
        "layers prepared on devices and once on the host.",
        "whole", at_least=0,
    )  # fmt: skip
    pressure: bool = option(
        False,
        "Adds a run whose keys and values outgrow a (modelled) cache half way: layers switch to "
        "--stronger automatically.",
        "switch",
    )
    seed: int = shared.seed()
    dtype: DType | None = shared.dtype()
    small: bool = shared.small()
    virtual: bool = shared.virtual("see --devices")
    out: str = shared.out("Folder for deploy.json.")

    def unused(self) -> dict[str, str]:
        """Return the flags of losses and switches that are unused, where there are none."""
        unused = {}
        if not (self.switches or self.pressure):
            unused["stronger"] = "neither switches nor pressure takes a layer to it"
        if not (self.losses or self.lose):
            unused["seed"] = "no losses whose times it would draw"
        return unused


def main(flags: Flags) -> int:
    """Run the deployment that the flags ask for."""
    check_writable(flags.out)
    dtype = _use_devices(flags)
    from parallax.engine.deployment.deploying import PROMPTS, deploy
    from parallax.lenses.environment import versions

    with ProgressLines() as progress:
        record = deploy(
            flags.model,
            flags.prompt or PROMPTS,
            devices=flags.devices,
            spares=flags.spares,
            device_budget=flags.device_budget,
            rule=flags.rule,
            compression=flags.compression,
            layer_formats=flags.layer_formats,
            stronger=flags.stronger,
            max_new_tokens=flags.max_new_tokens,
            microbatches=flags.microbatches,
            lose=flags.lose,
            losses=flags.losses,
            switches=flags.switches,
            pressure=flags.pressure,
            seed=flags.seed,
            small=flags.small,
            dtype=dtype,
            on_progress=progress,
        )
    data = {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["parallax", "deploy", *sys.argv[2:]]),
        "versions": versions(),
        **record.to_dict(),
    }
    (path,) = save_files(flags.out, {"deploy.json": json.dumps(data, indent=1) + "\n"})
    for grid in _grids(data):
        show(grid_table(grid), WIDTH)
        print()
    for line in _lines(data):
        print(line)
    print(f"\nwritten: {path}")
    return 0 if record.exact and data["setup"]["equals_unsharded"] is not False else 1


def _use_devices(flags: Flags) -> DType | None:
    """Set up virtual devices if asked for; return the dtype to run in."""
    import jax

    from parallax.engine.deployment.deploying import deployed_model
    from parallax.lenses.environment import virtual_devices

    config, _, stored = deployed_model(flags.model, small=flags.small)
    if flags.virtual:
        fitting = min(config.num_layers, _MOST_VIRTUAL) + flags.spares
        virtual_devices(flags.devices or fitting)
    dtype = flags.dtype
    if dtype is None and stored is None and jax.devices()[0].platform == "cpu":
        dtype = "float64"
    if "float64" in (dtype, config.dtype):
        jax.config.update("jax_enable_x64", True)
    return dtype


def _grids(data: dict[str, Any]) -> Iterator[DataTable]:
    trials, modelled = data["losses"]["trials"], data["modelled"]
    yield DataTable("layout", _LAYOUT, tuple(map(_layout_row, data["setup"]["layout"])))
    if times := data["losses"]["times"]:
        rows = []
        for name, row in times.items():
            estimate = modelled["losses"].get(name)
            there = _ms(estimate, "p50", "max") if estimate else ["", ""]
            rows.append(_row(name.removesuffix("_s"), *_ms(row, *_SPREAD), *there))
        yield DataTable(
            f"time to resume, ms ({len(trials)} simulated losses)", _RESUME, tuple(rows)
        )
        moved = tuple(map(_moved_row, trials))
        yield DataTable("moved and recomputed in each loss", _MOVED, moved)
    if data["switches"]:
        rows = []
        for place, record in data["switches"].items():
            estimate_ms = 1e3 * modelled["switch"]["there"][f"from_{place}_s"]
            megabytes = f"{record['copied_bytes'] / 1e6:.3f}"
            times = _ms(record["seconds"], *_SPREAD)
            rows.append(_row(place, str(record["count"]), megabytes, *times, f"{estimate_ms:.3g}"))
        yield DataTable("time to switch a layer, ms", _SWITCHED, tuple(rows))
    if data["pressure"] is not None:
        rows = tuple(map(_pressure_row, data["pressure"]))
        yield DataTable("automatic switches as keys and values grow", _PRESSURE, rows)


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
    switched = (str(made[k]) for k in ("number", "layer", "device"))
    return _row(*switched, now, made["reason"], megabytes, *_ms(made, "seconds"))


def _row(*texts: str) -> tuple[Cell, ...]:
    return tuple(map(Cell, texts))


def _ms(row: dict[str, float], *names: str) -> list[str]:
    return [f"{1e3 * row[name]:.3g}" for name in names]


def _lines(data: dict[str, Any]):
    setup, trials, modelled = data["setup"], data["losses"]["trials"], data["modelled"]
    same = {
        True: "the unsharded model's tokens",
        False: "NOT the unsharded model's tokens",
        None: "not compared with the unsharded model: no dense weights are equivalent to w8a8",
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
