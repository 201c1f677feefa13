"""Program: a model under a strategy, seen through the lenses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from flax import nnx

from parallax.analytic import estimate
from parallax.cost import Rates
from parallax.lenses.child import Progress, run_in_child
from parallax.lenses.compiling import check_devices, compile_for
from parallax.lenses.environment import compile_environment, cpu_environment, missing_compiler
from parallax.lenses.measuring import measure_prefill
from parallax.lenses.predicting import predict
from parallax.lenses.text import read_text
from parallax.lenses.verify_module import verify_module
from parallax.lenses.verifying import verify_transformer
from parallax.meshes.cluster import Cluster, cluster
from parallax.models.config import ModelConfig
from parallax.parallel.split import Remat
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps import ModelStep, make_step
from parallax.programs.user_module import ShardedModule
from parallax.results.lens_results import Compilation, Figure, Measurement, Prediction, Verification
from parallax.rules import Phase
from parallax.strategy import Strategy
from parallax.workload import Workload


def _quiet(line: str) -> None:
    pass


@dataclass(frozen=True, eq=False)
class Program:
    """What can be verified, compiled, predicted and measured.

    Args:
      model: a ModelConfig, or a zero-argument constructor of any NNX module with logical axes that
        maps tokens [B, L] to [B, L, ...]. It is never materialised for compile.
      strategy: how it is split.

    A ModelConfig runs in one `shard_map` with the strategy's parts; a user module is partitioned by
    XLA from the strategy's rules, and its results say so.
    """

    model: ModelConfig | Callable[[], nnx.Module]
    strategy: Strategy

    def __post_init__(self):
        if not isinstance(self.model, ModelConfig) and not callable(self.model):
            raise ValueError(
                f"Program: model must be a ModelConfig or a function that makes an NNX module, got "
                f"{type(self.model).__name__}. Write Program(lambda: MyModule(...), strategy)."
            )

    def workload(
        self, batch: int, seq_len: int, microbatches: int | None = None, packed: bool = False
    ) -> Workload:
        """The workload as this strategy runs it.

        Args:
          batch, seq_len: over all devices.
          microbatches: None takes the strategy's own, else 1.
        """
        own = getattr(self.strategy.layers, "microbatches", None)
        count = microbatches if microbatches is not None else own if own is not None else 1
        return Workload(batch, seq_len, count, packed)

    def sharded(self, workload: Workload) -> ShardedTransformer | ShardedModule:
        """The model as functions of sharded arrays. ValueError on sizes that do not divide."""
        return make_step(self.model, self.strategy, workload).sharded

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
        """Logits and gradients against the unsharded model, on virtual CPU devices in a child.

        Args:
          batch, seq_len, microbatches, packed: the workload; the model must fit a laptop.
          text: path of a UTF-8 file, or None for Python's standard library.
          dtypes: None is float64 and the model's own.

        Raises:
          ValueError: sizes the strategy cannot divide, a text that is not there.
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
            verify_module, self.model, self.strategy, workload, data, name,
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
        remat: Remat = "microbatch",
        on_progress: Progress = _quiet,
    ) -> Compilation:
        """The real CUDA program for a cluster, made in a child with no GPU.

        Args:
          cluster_name: as `parallax list clusters` has them.
          batch, seq_len, microbatches, packed: the workload.
          phase: "prefill" (one forward pass to last-position logits), "decode" (a new token of
            every sequence after prompts of seq_len tokens, microbatches being the strategy's), or
            "train" (a step of AdamW with float32 parameters).
          remat: what a training step recomputes: "none", "microbatch" or "layer".

        Raises:
          ValueError: sizes that do not divide, a mesh of another size than the cluster.
          ModuleNotFoundError: the compiler is not installed; says how to get it.
        """
        devices = cluster(cluster_name) if isinstance(cluster_name, str) else cluster_name
        check_devices(devices, self.strategy.mesh)
        workload = self.workload(batch, seq_len, microbatches, packed)
        make_step(self.model, self.strategy, workload, phase, remat)
        if missing := missing_compiler():
            raise ModuleNotFoundError(missing)
        return run_in_child(
            compile_program, self.model, self.strategy, workload, devices, phase, remat,
            environment=compile_environment(), on_progress=on_progress,
        )  # fmt: skip

    def predict(self, compilation: Compilation, rates: Rates | None = None) -> Prediction:
        """Modelled time and energy of a compiled program of this model, beside its roofline.

        Args:
          compilation: what `compile` returned.
          rates: of the GPU, such as `Rates.load` reads; None takes those shipped for it.

        Raises:
          ValueError: a program that cannot be priced; says why.
        """
        workload = compilation.workload
        whole = replace(workload, microbatches=1)
        step = make_step(self.model, self.strategy, whole, cast(Phase, compilation.phase))
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
        on_progress: Progress = _quiet,
    ) -> Measurement:
        """Time of a forward pass to last-position logits on the devices at hand, in a child.

        Args:
          batch, seq_len, microbatches: the workload.
          repeats: timed steps, after two that are not.
          virtual: on virtual CPU devices instead, as many as the mesh needs. Their times say
            nothing about how strategies compare.

        Raises:
          ValueError: fewer devices than the mesh needs.
        """
        workload = self.workload(batch, seq_len, microbatches)
        self.sharded(workload)
        data, _ = read_text(text, workload.tokens)
        environment: dict[str, str] = {}
        if virtual:
            environment = cpu_environment(self.strategy.mesh.size, fast_code=True)
        if not isinstance(self.model, ModelConfig):
            # A constructor's default dtype is then float32, as on a GPU and in `compile`.
            environment["JAX_ENABLE_X64"] = "0"
        return run_in_child(
            measure_prefill, self.model, self.strategy, workload, data, repeats,
            environment=environment, on_progress=on_progress,
        )  # fmt: skip


def compile_program(
    model: Any,
    strategy: Strategy,
    workload: Workload,
    cluster: Cluster,
    phase: Phase = "prefill",
    remat: Remat = "microbatch",
    *,
    on_progress: Progress,
) -> Compilation:
    """Compiles one program in this process: what `Program.compile` runs in its child."""
    step = make_step(model, strategy, workload, phase, remat)
    return compile_step(step, cluster, on_progress=on_progress)


def compile_step(
    step: ModelStep, cluster: Cluster, *, on_progress: Progress = _quiet
) -> Compilation:
    """Compiles a step for a cluster, in this process, and holds it against what is derived."""
    strategy, routing = step.sharded.strategy, step.routing
    on_progress(f"{strategy.name} for {cluster.name}")
    return compile_for(
        cluster,
        step.function,
        step.arguments,
        strategy.mesh,
        workload=step.workload,
        phase=step.phase,
        transfers=step.transfers(),
        kv_cache_bytes=step.kv_cache_bytes(),
        weight_bytes=step.weight_bytes(),
        partitioner=step.sharded.partitioner,
        donate=step.donated,
        compiler_options=step.compiler_options,
        trips=routing and routing.trips,
        ragged_bytes=routing and routing.ragged_bytes,
        load_balance=step.load_balance(),
        said=step.notes,
        on_progress=on_progress,
    )
