"""The `Program`: a model under a strategy, seen through the lenses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
from flax import nnx

from parallax.analytic import estimate
from parallax.cost import Rates, rates_for
from parallax.distributed.agreement import together
from parallax.explanations.facts import Facts
from parallax.lenses.child import Progress, run_in_child
from parallax.lenses.compiling import check_devices
from parallax.lenses.compiling_steps import compile_program, lower_step
from parallax.lenses.device_process import run_on_devices
from parallax.lenses.environment import compile_environment, cpu_environment, missing_compiler
from parallax.lenses.measuring import measure_prefill
from parallax.lenses.predicting import predict
from parallax.lenses.profiling import ProfileTask
from parallax.lenses.text import read_text
from parallax.lenses.verify_module import verify_module
from parallax.lenses.verifying import verify_transformer
from parallax.meshes.cluster import Cluster, cluster
from parallax.models.config import ModelConfig
from parallax.programs.module_kinds import WithLogicalAxes, has_arrays
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps import Phase, Remat, make_step
from parallax.programs.user_module import ShardedModule
from parallax.report.explanation import Explanation
from parallax.results.lens_results import Compilation, Figure, Measurement, Prediction, Verification
from parallax.strategy import Strategy
from parallax.workload import Workload


def _quiet(line: str) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Program:
    """A model under a strategy, which the lenses verify, compile, predict and measure.

    Args:
      model: a ModelConfig, a Linen module, or a zero-argument constructor of any NNX module, Linen
        module or callable pytree (such as an Equinox module) that maps tokens [B, L] to
        [B, L, ...]. Compiling never materialises it.
      strategy: how the model is split.
      logical_axes: logical axes of a user module's arrays by path, for a module that names none or
        other ones: {"layers/*/weight": ("mlp", "embed")}. A key is a glob of paths, the first that
        matches counts; a value names every dim, None is not split.

    A ModelConfig runs in one `shard_map` with the strategy's parts. XLA partitions a user module
    from the strategy's rules, and the results say so. Parameters without logical axes are
    replicated, and the results' notes name them.
    """

    model: ModelConfig | Callable[[], Any] | nn.Module
    strategy: Strategy
    logical_axes: Mapping[str, Sequence[str | None]] | None = None

    def __post_init__(self):
        if isinstance(self.model, ModelConfig):
            if self.logical_axes:
                raise ValueError("Program: logical_axes are those of user modules; leave them out.")
        elif isinstance(self.model, nnx.Module) or not callable(self.model) or (
            has_arrays(self.model)
        ):  # fmt: skip
            raise ValueError(
                "Program: model must be a ModelConfig or a function that makes an NNX module, a "
                f"Linen module or a callable pytree, got {type(self.model).__name__}. Write "
                "Program(lambda: MyModule(...), strategy)."
            )

    @property
    def _source(self) -> Any:
        """The model with its logical axes, as a step takes it."""
        if not self.logical_axes:
            return self.model
        return WithLogicalAxes.of(self.model, self.logical_axes)

    def workload(
        self, batch: int, seq_len: int, microbatches: int | None = None, packed: bool = False
    ) -> Workload:
        """Return the workload with this strategy's number of microbatches.

        Args:
          batch, seq_len: sequences over all devices, and tokens per sequence.
          microbatches: None takes the strategy's own number, or 1 if it has none.
          packed: segment ids are given.
        """
        own = getattr(self.strategy.layers, "microbatches", None)
        count = microbatches if microbatches is not None else own if own is not None else 1
        return Workload(batch, seq_len, count, packed)

    def sharded(self, workload: Workload) -> ShardedTransformer | ShardedModule:
        """Return the model as functions of sharded arrays.

        Raises:
          ValueError: sizes that do not divide.
        """
        return make_step(self._source, self.strategy, workload).sharded

    def verify(
        self,
        batch: int,
        seq_len: int,
        *,
        microbatches: int | None = None,
        packed: bool = False,
        text: str | None = None,
        dtypes: Sequence[str] | None = None,
        on_progress: Progress = _quiet,
    ) -> Verification:
        """Compare logits and gradients with the unsharded model, on virtual CPU devices in a child.

        Args:
          batch, seq_len, microbatches, packed: the workload; the model must fit a laptop.
          text: the path of a UTF-8 file; None takes the sources of Python's standard library.
          dtypes: the dtypes to compare in; None takes float64 and the model's own.

        Raises:
          ValueError: sizes that the strategy cannot divide, or a text file that does not exist.
        """
        workload = self.workload(batch, seq_len, microbatches, packed)
        self.sharded(workload)
        data, name = read_text(text, workload.tokens)
        environment = cpu_environment(self.strategy.mesh.size)
        if isinstance(self.model, ModelConfig):
            names = tuple(dict.fromkeys(dtypes or ("float64", self.model.dtype)))
            cases = [(self.strategy, workload)]
            return run_in_child(
                verify_transformer, self.model, cases, data, name, names,
                environment=environment, on_progress=on_progress,
            )[0]  # fmt: skip
        return run_in_child(
            verify_module, self._source, self.strategy, workload, data, name,
            environment=environment, on_progress=on_progress,
        )  # fmt: skip

    def compile(
        self,
        cluster_name: str | Cluster = "h100_2x8",
        *,
        batch: int,
        seq_len: int,
        microbatches: int | None = None,
        packed: bool = False,
        phase: Phase = "prefill",
        remat: Remat = "layer",
        on_progress: Progress = _quiet,
    ) -> Compilation:
        """Compile the real CUDA program for a cluster, in a child process that needs no GPU.

        Args:
          cluster_name: a name that `parallax list clusters` prints, or a Cluster.
          batch, seq_len, microbatches, packed: the workload.
          phase: "prefill" (one forward pass to last-position logits), "decode" (a new token of
            every sequence after prompts of seq_len tokens, in the strategy's own microbatches), or
            "train" (a step of AdamW with float32 parameters).
          remat: what a training step recomputes: "none", "attention" or "layer".

        Raises:
          ValueError: sizes that do not divide, or a mesh and a cluster of different sizes.
          ModuleNotFoundError: the compiler is not installed; the message says how to get it.
        """
        devices = cluster(cluster_name) if isinstance(cluster_name, str) else cluster_name
        check_devices(devices, self.strategy.mesh_axes)
        workload = self.workload(batch, seq_len, microbatches, packed)
        make_step(self._source, self.strategy, workload, phase, remat)
        if missing := missing_compiler():
            raise ModuleNotFoundError(missing)
        return run_in_child(
            compile_program, self._source, self.strategy, workload, devices, phase, remat,
            environment=compile_environment(), on_progress=on_progress,
        )  # fmt: skip

    def explain(
        self,
        cluster_name: str | Cluster = "h100_2x8",
        *,
        batch: int,
        seq_len: int,
        microbatches: int | None = None,
        packed: bool = False,
        phase: Phase = "prefill",
        remat: Remat = "layer",
        rates: Rates | None = None,
        budget_s: float = 55.0,
        on_progress: Progress = _quiet,
    ) -> Explanation:
        """Explain what the compiler makes of this program, by source line, in a child process.

        Args:
          cluster_name, batch, seq_len, microbatches, packed, phase, remat: as for `compile`.
          rates: the GPU's rates; None takes those shipped for it.
          budget_s: about how many seconds all may take; 0 tries no changes.

        Raises:
          ValueError, ModuleNotFoundError: as `compile`.
        """
        devices = cluster(cluster_name) if isinstance(cluster_name, str) else cluster_name
        check_devices(devices, self.strategy.mesh_axes)
        workload = self.workload(batch, seq_len, microbatches, packed)
        make_step(self.model, self.strategy, workload, phase, remat)
        if missing := missing_compiler():
            raise ModuleNotFoundError(missing)
        facts = run_in_child(
            explain_program, self.model, self.strategy, workload, devices, phase, remat,
            rates_for(devices, rates), budget_s, on_progress=on_progress,
            environment=compile_environment() | {"JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "10"},
        )  # fmt: skip
        return Explanation(facts)

    def predict(self, compilation: Compilation, rates: Rates | None = None) -> Prediction:
        """Predict the time and energy of a compiled program of this model, and its roofline.

        Args:
          compilation: the result of `compile`.
          rates: the GPU's rates, as `Rates.load` reads them; None takes those shipped for it.

        Raises:
          ValueError: a program whose cost cannot be estimated; the message says why.
        """
        workload = compilation.workload
        whole = replace(workload, microbatches=1)
        phase, remat = cast(Phase, compilation.phase), cast(Remat, compilation.remat or "layer")
        step = make_step(self._source, self.strategy, whole, phase, remat)
        step = step.with_microbatches(workload.microbatches)
        devices, estimate_s = cluster(compilation.cluster), None
        if not step.unmodelled:
            seconds = estimate(step, devices, rates=rates).cost.seconds
            estimate_s = Figure(seconds, "s", "modelled")
        return predict(
            compilation, devices, step.dtype, rates,
            useful_flops=step.useful_flops(), estimate_s=estimate_s,
        )  # fmt: skip

    def measure(
        self,
        batch: int,
        seq_len: int,
        *,
        microbatches: int | None = None,
        repeats: int = 10,
        virtual: bool = False,
        text: str | None = None,
        profile: str | Path | None = None,
        on_progress: Progress = _quiet,
    ) -> Measurement:
        """Measure a forward pass to last-position logits on the devices at hand.

        It runs in a child process, on this machine's devices. After `px.initialize` on several
        processes all of them have to call it, and it runs in each of them, on all devices.

        Args:
          batch, seq_len, microbatches: the workload.
          repeats: timed steps, after two untimed ones.
          text: as in `verify`.
          virtual: use as many virtual CPU devices as the mesh needs; several processes use those
            that they started with. Their times say nothing about how strategies compare.
          profile: a folder for a trace of three more steps, which XProf and TensorBoard open; the
            result's `profile` holds measured against modelled time, operation by operation.

        Returns:
          The step time; of several processes that of the slowest in each step, with each one's own.

        Raises:
          ValueError: fewer devices than the mesh needs, a process without a device in it, or a
            profile without device events.
        """
        workload = self.workload(batch, seq_len, microbatches)
        self.sharded(workload)
        data, _ = together("the text", lambda: read_text(text, workload.tokens))
        environment: dict[str, str] = {}
        if virtual:
            environment = cpu_environment(self.strategy.mesh.size, fast_code=True)
        if not isinstance(self.model, ModelConfig):
            # A constructor's default dtype is then float32, as on a GPU and in `compile`.
            environment["JAX_ENABLE_X64"] = "0"
        return run_on_devices(
            measure_prefill, self._source, self.strategy, workload, data, repeats,
            None if profile is None else ProfileTask(str(Path(profile).absolute())),
            environment=environment, on_progress=on_progress,
        )  # fmt: skip


def explain_program(
    model: Any,
    strategy: Strategy,
    workload: Workload,
    cluster: Cluster,
    phase: Phase,
    remat: Remat,
    rates: Rates,
    budget_s: float,
    *,
    on_progress: Progress,
) -> Facts:
    """Explain one program in this process, as `Program.explain` does in its child process."""
    from parallax.explanations.explaining import explain_lowered
    from parallax.explanations.gathering import gather_facts
    from parallax.explanations.trying import TryBudget

    step = make_step(model, strategy, workload, phase, remat)
    program, trips = lower_step(step, cluster), step.trips
    found = explain_lowered(
        program, cluster, rates, TryBudget(seconds=budget_s), trips=trips,
        options=step.compiler_options,
        on_progress=on_progress,
    )  # fmt: skip
    return gather_facts(found, program.axes, trips)
