"""Checkpoints that any strategy on any number of devices restores, bit for bit.

A folder `checkpoints/STEP` by orbax holds the arrays in the model's own layout (`whole_state`), and
what goes with them as JSON. Beside it `checksums/STEP.json`, written last, says what its files are.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from parallax.codec import check_version
from parallax.engine.whole_state import abstract_whole, named, placed, unnamed, whole
from parallax.models.config import ModelConfig
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainState, TrainStep

FORMAT_VERSION = 1
Line = Callable[[str], None]


@dataclass(frozen=True)
class Checkpoint:
    """What was restored.

    Attributes:
      step: steps done.
      state: as the step that restores it lays it out.
      meta: what `Checkpoints.save` was given beside it.
    """

    step: int
    state: TrainState
    meta: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: of the run; `checkpoints/` and `checksums/` are in it.
      keep: newest ones that stay, at least 1.

    Saves happen beside the next steps; `wait` (or leaving the `with`) waits for them.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, got {keep}.")
        self.folder, self.keep = Path(folder).resolve(), keep
        self._saving: Future | None = None
        self._thread = ThreadPoolExecutor(1)
        self._orbax = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being saved."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if self._orbax is not None:
                self._orbax.close()

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, oldest first."""
        found = self.folder / "checkpoints"
        if not found.is_dir():
            return []
        names = [p.name for p in found.iterdir() if p.name.isdigit()]
        return sorted(int(n) for n in names if (found / n / "_CHECKPOINT_METADATA").is_file())

    def save(self, step: int, train: TrainStep, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Starts to save; waits first for a save that is still under way.

        Args:
          step: steps done, larger than any saved.
          train: whose state it is.
          state: may be donated to the next step as soon as this returns.
          meta: JSON: data position, seed and the like; the model's config is added.
        """
        self.wait()
        arrays = named(whole(train, state))
        sharded = train.sharded
        meta = {
            "format_version": FORMAT_VERSION,
            "step": step,
            "model": sharded.config.to_dict(),
            "strategy": sharded.strategy.to_dict(),
            "param_dtype": train.param_dtype,
            **meta,
        }
        response = self._open().save_checkpointables_async(step, {"state": arrays, "meta": meta})
        self._saving = self._thread.submit(self._finish, step, response)

    def wait(self) -> None:
        """Until nothing is being saved. Raises what went wrong with it."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def restore(self, train: TrainStep, mesh, step: int | None = None) -> Checkpoint:
        """A checkpoint under any strategy; each device reads its own shards.

        Args:
          train: what will go on with it: its strategy, mesh and optimizer.
          mesh: its devices.
          step: None is the newest.

        Raises:
          ValueError: none there, a broken one, or one of another model or optimizer.
        """
        step = self._pick(step)
        meta = self.read_meta(step)
        where = self._where(step)
        _same_model(meta["model"], train.sharded.config, where)
        like = named(abstract_whole(train, mesh))
        try:
            arrays = self._open().load_checkpointables(step, {"state": like})["state"]
        except Exception as error:  # orbax raises many kinds
            raise ValueError(self._broken(step, _one_line(error))) from None
        state = unnamed(arrays, abstract_whole(train, mesh))
        return Checkpoint(step, placed(train, state, mesh), meta)

    def restore_params(self, sharded: ShardedTransformer, mesh, step: int | None = None):
        """Parameters alone, in the model's own dtype, as `sharded` lays them out.

        Raises:
          ValueError: as `restore`.
        """
        step = self._pick(step)
        meta = self.read_meta(step)
        _same_model({**meta["model"], "dtype": sharded.config.dtype}, sharded.config,
                    self._where(step))  # fmt: skip
        train = TrainStep(sharded, param_dtype=meta["param_dtype"])
        params = abstract_whole(train, mesh).params
        like = {f"params/{name}": x for name, x in named(params).items()}
        from orbax.checkpoint import v1 as ocp

        try:
            context = ocp.Context()
            context.pytree.loading.partial_load = True
            with context:
                arrays = ocp.load_checkpointables(str(self._where(step)), {"state": like})["state"]
        except Exception as error:
            raise ValueError(self._broken(step, _one_line(error))) from None
        found = unnamed({n.removeprefix("params/"): x for n, x in arrays.items()}, params)
        dtype = sharded.config.dtype
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), sharded.specs)

        def make(params):
            return jax.tree.map(lambda x: x.astype(dtype), sharded.place(params))

        return jax.jit(make, out_shardings=shardings)(found)

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside the arrays, after all files were checked.

        Raises:
          ValueError: none there, or a broken one.
        """
        step = self._pick(step)
        self._check_files(step)
        try:
            meta = self._open().load_checkpointables(step, {"meta": None})["meta"]
        except Exception as error:
            raise ValueError(self._broken(step, _one_line(error))) from None
        next_step = "Use the version that wrote it."
        check_version(meta, "format_version", FORMAT_VERSION, str(self._where(step)), next_step)
        return meta

    def _open(self):
        if self._orbax is None:
            from orbax.checkpoint import v1 as ocp

            latest: Any = ocp.training.preservation_policies.LatestN(self.keep)
            self._orbax = ocp.training.Checkpointer(
                str(self.folder / "checkpoints"),
                preservation_policy=latest,
                cleanup_tmp_directories=True,
            )
        return self._orbax

    def _finish(self, step: int, response) -> None:
        """Behind the steps that follow: when files are complete, what they are."""
        response.result()
        if jax.process_index():
            return
        folder = self.folder / "checksums"
        folder.mkdir(exist_ok=True)
        waiting = folder / f".{step}.json"
        waiting.write_text(json.dumps(_checksums(self._where(step)), indent=1), encoding="utf-8")
        waiting.rename(folder / f"{step}.json")
        kept = set(self.steps())
        for path in folder.glob("*.json"):
            if path.stem.isdigit() and int(path.stem) not in kept:
                path.unlink()

    def _check_files(self, step: int) -> None:
        path = self.folder / "checksums" / f"{step}.json"
        if not path.is_file():  # killed in between: orbax's own marks say that it is complete
            return
        try:
            expected = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(self._broken(step, f"{path}: not JSON: {error}")) from None
        found = _checksums(self._where(step))
        for name in sorted({*expected, *found}):
            if name not in found:
                raise ValueError(self._broken(step, f"file {name} is missing"))
            if found[name] != expected.get(name):
                raise ValueError(self._broken(step, f"file {name} is not what was saved"))

    def _pick(self, step: int | None) -> int:
        self.wait()
        steps = self.steps()
        if not steps:
            raise ValueError(f"{self.folder}: no checkpoint. Train with --workdir to make one.")
        if step is None:
            return steps[-1]
        if step not in steps:
            raise ValueError(
                f"{self.folder}: no checkpoint of step {step}. There are {steps}. Use one of them."
            )
        return step

    def _where(self, step: int) -> Path:
        return self.folder / "checkpoints" / str(step)

    def _broken(self, step: int, why: str) -> str:
        others = [s for s in self.steps() if s != step]
        next_step = (
            f"Use step {others[-1]} (--step={others[-1]})" if others else "There is no other"
        )
        return f"{self._where(step)}: broken checkpoint of step {step}: {why}. {next_step}."


def remove_step(folder: str | Path, step: int) -> None:
    """Deletes one checkpoint, for example a broken newest one."""
    shutil.rmtree(Path(folder) / "checkpoints" / str(step), ignore_errors=True)
    (Path(folder) / "checksums" / f"{step}.json").unlink(missing_ok=True)


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by path inside the folder."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _same_model(saved: dict[str, Any], config: ModelConfig, where: Path) -> None:
    ours = config.to_dict()
    different = [
        f"{name} {saved.get(name)!r}, here {ours.get(name)!r}"
        for name in sorted({*saved, *ours} - {"name"})
        if saved.get(name) != ours.get(name)
    ]
    if different:
        raise ValueError(
            f"{where}: of another model: {'; '.join(different)}. Use the model it was saved with."
        )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
