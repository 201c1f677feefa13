"""Checkpoints that any strategy on any number of devices restores, bit for bit.

A folder `checkpoints/STEP`, written by orbax, holds the arrays in the model's own layout
(`whole_state`) and their metadata as JSON. `checksums/STEP.json`, written last, has the checksums
of its files.
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
    """A restored checkpoint.

    Attributes:
      step: the number of steps done.
      state: the training state, sharded as the restoring step's strategy lays it out.
      meta: the metadata that `Checkpoints.save` was given.
    """

    step: int
    state: TrainState
    meta: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: the run's folder, which contains `checkpoints/` and `checksums/`.
      keep: how many of the newest checkpoints to keep, at least 1.

    Saves run beside the next steps; `wait` (or leaving the `with` block) waits for them.
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
        """Wait for the save that is under way, if any."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            if self._orbax is not None:
                self._orbax.close()

    def steps(self) -> list[int]:
        """Return the steps of complete checkpoints, oldest first."""
        folder = self.folder / "checkpoints"
        if not folder.is_dir():
            return []
        names = [p.name for p in folder.iterdir() if p.name.isdigit()]
        return sorted(int(n) for n in names if (folder / n / "_CHECKPOINT_METADATA").is_file())

    def save(self, step: int, train: TrainStep, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Start a save, once an earlier save that is still under way has finished.

        Args:
          step: the number of steps done, larger than any saved.
          train: the training step that the state belongs to.
          state: the training state; it may be donated as soon as this returns.
          meta: JSON such as data position and seed; the model's config is added.
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
        """Wait until nothing is being saved; raise the error of a save that failed."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def restore(self, train: TrainStep, mesh, step: int | None = None) -> Checkpoint:
        """Restore a checkpoint under any strategy; each device reads its own shards.

        Args:
          train: the training step that resumes, with its strategy and optimizer.
          mesh: the devices of its strategy.
          step: the step to restore; None takes the newest.

        Raises:
          ValueError: there is no such checkpoint, it is broken, or its model, optimizer or a dtype
            differs; nothing is cast.
        """
        from orbax.checkpoint import v1 as ocp

        step = self._pick(step)
        meta = self.read_meta(step)
        where = self._where(step)
        _same_model(meta["model"], train.sharded.config, where)
        like = named(abstract_whole(train, mesh))
        try:
            saved: Any = ocp.metadata(str(where), "state").metadata
        except Exception as error:  # orbax raises errors of many types
            raise ValueError(self._broken(step, _one_line(error))) from None
        _same_arrays(saved, like, where)
        try:
            arrays = self._open().load_checkpointables(step, {"state": like})["state"]
        except Exception as error:
            raise ValueError(self._broken(step, _one_line(error))) from None
        state = unnamed(arrays, abstract_whole(train, mesh))
        return Checkpoint(step, placed(train, state, mesh), meta)

    def restore_params(self, sharded: ShardedTransformer, mesh, step: int | None = None):
        """Restore the parameters alone, in the model's own dtype, as `sharded` lays them out.

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
        state = unnamed({n.removeprefix("params/"): x for n, x in arrays.items()}, params)
        dtype = sharded.config.dtype
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), sharded.specs)

        def make(params):
            return jax.tree.map(lambda x: x.astype(dtype), sharded.shard(params))

        return jax.jit(make, out_shardings=shardings)(state)

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """Read the metadata saved beside the arrays, after checking all files.

        Raises:
          ValueError: there is no such checkpoint, or it is broken.
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
        """Write the checksums once all files are complete, while the next steps run."""
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
        if (
            not path.is_file()
        ):  # the process was killed before writing it; orbax marks the checkpoint as complete
            return
        try:
            expected = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(self._broken(step, f"{path}: not JSON: {error}")) from None
        actual = _checksums(self._where(step))
        for name in sorted({*expected, *actual}):
            if name not in actual:
                raise ValueError(self._broken(step, f"file {name} is missing"))
            if actual[name] != expected.get(name):
                raise ValueError(self._broken(step, f"file {name} differs from what was saved"))

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
    """Delete one checkpoint, for example a broken newest one."""
    shutil.rmtree(Path(folder) / "checkpoints" / str(step), ignore_errors=True)
    (Path(folder) / "checksums" / f"{step}.json").unlink(missing_ok=True)


def _checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file, by path inside the folder."""
    checksums = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            checksums[str(path.relative_to(folder))] = hashlib.file_digest(
                file, "sha256"
            ).hexdigest()
    return checksums


def _same_model(saved: dict[str, Any], config: ModelConfig, path: Path) -> None:
    ours = config.to_dict()
    different = [
        f"{name} {saved.get(name)!r}, here {ours.get(name)!r}"
        for name in sorted({*saved, *ours} - {"name"})
        if saved.get(name) != ours.get(name)
    ]
    if different:
        raise ValueError(
            f"{path}: for another model: {'; '.join(different)}. Use the model it was saved with."
        )


def _same_arrays(saved: Mapping[str, Any], like: Mapping[str, Any], path: Path) -> None:
    """Raise ValueError unless a saved state has the arrays, shapes and dtypes of `like`."""

    def said(arrays, name) -> str:
        x = arrays.get(name)
        return "missing" if x is None else f"{x.dtype} {list(x.shape)}"

    different = [
        f"{name.removesuffix('/value')} {said(saved, name)}, here {said(like, name)}"
        for name in sorted({*saved, *like})
        if said(saved, name) != said(like, name)
    ]
    if different:
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise ValueError(
            f"{path}: for another optimizer or dtype: {'; '.join(different[:3])}{more}. Use the "
            "optimizer, its moments' dtype and the parameters' dtype that it was saved with."
        )


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
