"""Checkpoints that any strategy on any number of devices and processes restores, bit for bit.

A folder `checkpoints/STEP`, written by orbax from all processes, holds the arrays in the model's
own layout (`whole_state`) and their metadata as JSON. `checksums/STEP.json`, written last, has the
checksums of its files.
"""

import contextlib
import functools
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from parallax.codec import check_version
from parallax.distributed.agreement import from_first, raise_lost_peer, together
from parallax.distributed.processes import is_first, process_count
from parallax.distributed.shared_reads import gather_replicas, split_replicas
from parallax.engine.checkpoint_files import (
    BrokenFilesError,
    check_share,
    complete_steps,
    keep_newest,
    remove_leftovers,
    where,
    write_checksums,
)
from parallax.engine.whole_state import abstract_whole, named, placed, unnamed, whole
from parallax.models.config import ModelConfig
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.training import TrainState, TrainStep

FORMAT_VERSION = 1
_SAVE_TIMEOUT_S = 7200  # of orbax, for the slowest process to write its part


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

    Saves run beside the next steps; `wait` (or leaving the `with` block) waits for them. All
    processes have to call all methods but `steps` and `check`.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, got {keep}.")
        self.folder, self.keep = Path(folder).resolve(), keep
        self._saving: tuple[int, Future] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._is_clean = False

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

    def steps(self) -> list[int]:
        """Return the steps of complete checkpoints, oldest first, as this process sees them."""
        return complete_steps(self.folder)

    def newest(self) -> int | None:
        """Return the newest complete step that process 0 sees, on every process; None for none."""
        return json.loads(
            from_first("the newest checkpoint", json.dumps((self.steps() or [None])[-1]))
        )

    def save(self, step: int, train: TrainStep, state: TrainState, meta: Mapping[str, Any]) -> None:
        """Start a save, once an earlier save that is still under way has finished.

        Args:
          step: the number of steps done, larger than any saved.
          train: the training step that the state belongs to.
          state: the training state; it may be donated as soon as this returns.
          meta: JSON such as data position and seed; the model's config is added. Process 0's is
            saved.

        Raises:
          ValueError: this save or the one before cannot be written; complete checkpoints stay.
        """
        from orbax.checkpoint import v1 as ocp

        self.wait()
        _silence_orbax()
        self._clean()
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
        context = ocp.Context()
        context.async_options.timeout_secs = _SAVE_TIMEOUT_S
        try:
            with context:
                response = ocp.save_checkpointables_async(
                    str(where(self.folder, step)), {"state": arrays, "meta": meta}
                )
        except Exception as error:  # orbax raises errors of many types
            raise_lost_peer(error)
            raise self._unsaved(step, error) from None
        self._saving = step, self._thread.submit(self._finish, step, response)

    def check(self) -> None:
        """Raise the error of a save that has failed by now; waits for nothing."""
        if self._saving is not None and self._saving[1].done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being saved.

        Raises:
          ValueError: the save that was under way failed.
        """
        if self._saving is None:
            return
        (step, saving), self._saving = self._saving, None
        try:
            saving.result()
        except Exception as error:
            raise_lost_peer(error)
            raise self._unsaved(step, error) from None

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
        path = where(self.folder, step)
        _same_model(meta["model"], train.sharded.config, path)
        like = named(abstract_whole(train, mesh))
        try:
            saved: Any = ocp.metadata(str(path), "state").metadata
        except Exception as error:  # orbax raises errors of many types
            raise ValueError(self._broken(step, _one_line(error))) from None
        _same_arrays(saved, like, path)
        state = unnamed(self._load(step, like), abstract_whole(train, mesh))
        return Checkpoint(step, placed(train, state, mesh), meta)

    def restore_params(self, sharded: ShardedTransformer, mesh, step: int | None = None):
        """Restore the parameters alone, in the model's own dtype, as `sharded` lays them out.

        Raises:
          ValueError: as `restore`.
        """
        step = self._pick(step)
        meta = self.read_meta(step)
        _same_model({**meta["model"], "dtype": sharded.config.dtype}, sharded.config,
                    where(self.folder, step))  # fmt: skip
        train = TrainStep(sharded, param_dtype=meta["param_dtype"])
        params = abstract_whole(train, mesh).params
        like = {f"params/{name}": x for name, x in named(params).items()}
        arrays = self._load(step, like)
        state = unnamed({n.removeprefix("params/"): x for n, x in arrays.items()}, params)
        dtype = sharded.config.dtype
        shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), sharded.specs)

        def make(params):
            return jax.tree.map(lambda x: x.astype(dtype), sharded.shard(params))

        return jax.jit(make, out_shardings=shardings)(state)

    def read_meta(self, step: int | None = None) -> dict[str, Any]:
        """Read the metadata saved beside the arrays, after checking all files.

        Each process checks a share of the files, and the error of one is raised on all.

        Raises:
          ValueError: there is no such checkpoint, or it is broken.
        """
        from orbax.checkpoint import v1 as ocp

        step = self._pick(step)

        def check() -> None:
            try:
                check_share(self.folder, step)
            except BrokenFilesError as error:
                raise ValueError(self._broken(step, str(error))) from None

        together(f"checking the files of step {step}", check)
        path = where(self.folder, step)
        try:
            meta = ocp.load_checkpointables(str(path), {"meta": None})["meta"]
        except Exception as error:
            raise_lost_peer(error)
            raise ValueError(self._broken(step, _one_line(error))) from None
        next_step = "Use the version that wrote it."
        check_version(meta, "format_version", FORMAT_VERSION, str(path), next_step)
        return meta

    def _load(self, step: int, like: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Load arrays by name, with the shardings of `like`; no two processes read the same.

        Cost: what several processes hold, each reads a part of; the parts are gathered one array
          after another.
        """
        from orbax.checkpoint import v1 as ocp

        parts = {
            name: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=split_replicas(x.sharding, x.shape, x.dtype.itemsize)
            )
            for name, x in like.items()
        }
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        try:
            with context:
                path = where(self.folder, step)
                arrays = ocp.load_checkpointables(str(path), {"state": parts})["state"]
        except Exception as error:
            raise_lost_peer(error)
            raise ValueError(self._broken(step, _one_line(error))) from None
        return {name: gather_replicas(arrays.pop(name), x.sharding) for name, x in like.items()}

    def _clean(self) -> None:
        """Before the first save: remove what an earlier process left half written."""
        if not self._is_clean:
            clean = functools.partial(remove_leftovers, self.folder)
            together("the folder of checkpoints", clean if is_first() else lambda: None)
            self._is_clean = True

    def _finish(self, step: int, response) -> None:
        """Write the checksums once all files are complete, while the next steps run."""
        response.result()
        if is_first():
            write_checksums(self.folder, step)
            keep_newest(self.folder, self.keep)

    def _unsaved(self, step: int, error: Exception) -> ValueError:
        steps = self.steps()
        if step in steps:
            why = f"step {step} is complete, but its checksums or older steps are not in order"
        elif steps:
            why = f"step {step} is not saved, and the newest complete one is {steps[-1]}"
        else:
            why = f"step {step} is not saved, and no other is"
        if process_count() == 1:  # others may be writing still, and the next start removes it too
            with contextlib.suppress(OSError):
                remove_leftovers(self.folder)
        return ValueError(
            f"{self.folder}: {why}: {_reason(error)}. Make room or make it writable, and run the "
            "same command: it resumes from the newest complete step."
        )

    def _pick(self, step: int | None) -> int:
        """Return the step asked for, or the newest, among those that process 0 sees."""
        self.wait()
        steps = json.loads(from_first("steps of checkpoints", json.dumps(self.steps())))
        if not steps:
            raise ValueError(f"{self.folder}: no checkpoint. Train with --workdir to make one.")
        if step is None:
            return steps[-1]
        if step not in steps:
            raise ValueError(
                f"{self.folder}: no checkpoint of step {step}. There are {steps}. Use one of them."
            )
        return step

    def _broken(self, step: int, why: str) -> str:
        others = [s for s in self.steps() if s != step]
        next_step = (
            f"Use step {others[-1]} (--step={others[-1]})" if others else "There is no other"
        )
        return f"{where(self.folder, step)}: broken checkpoint of step {step}: {why}. {next_step}."


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


@functools.cache
def _silence_orbax() -> None:
    """Keep orbax from printing a stack trace of each thread that meets an error; it raises it."""
    import absl.logging  # it makes the logger

    absl.logging.get_absl_logger().addFilter(
        lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname
    )


def _reason(error: Exception) -> str:
    """Return what the operating system said, which orbax puts last, or the whole error."""
    found = re.search(r"([^:]+?) \[os_error_code", str(error))
    return found[1].strip() if found else _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
