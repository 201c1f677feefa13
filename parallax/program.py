"""Program: a model under a strategy, seen through the lenses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from parallax.communication import (
    decode_transfers,
    expected_routing,
    forward_transfers,
    kv_cache_bytes,
    train_transfers,
)
from parallax.cost import Rates
from parallax.decoding import Decoder
from parallax.estimate import estimate
from parallax.evenness import evenness
from parallax.gspmd import ShardedModule
from parallax.lenses.child import Progress, run_in_child
from parallax.lenses.compiling import check_devices, compile_for
from parallax.lenses.environment import compile_environment, cpu_environment, missing_compiler
from parallax.lenses.measuring import measure_module, measure_transformer
from parallax.lenses.predicting import predict
from parallax.lenses.text import read_text
from parallax.lenses.verify_module import verify_module
from parallax.lenses.verifying import verify_transformer
from parallax.meshes.cluster import Cluster, cluster
from parallax.models.config import ModelConfig
from parallax.models.flops import model_flops
from parallax.parallel.layer_parts import CacheTiled
from parallax.parallel.split import Remat
from parallax.results import Compilation, Figure, Measurement, Prediction, Verification
from parallax.rules import Phase
from parallax.spmd import ShardedTransformer
from parallax.strategy import Strategy
from parallax.training import TrainStep
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

    A ModelConfig runs in one manual map with the strategy's parts; a foreign module is partitioned
    by XLA from the strategy's rules, and its results say so.
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
        if isinstance(self.model, ModelConfig):
            return ShardedTransformer(self.model, self.strategy, workload)
        return ShardedModule(self.model, self.strategy, workload)

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
        where = cluster(cluster_name) if isinstance(cluster_name, str) else cluster_name
        check_devices(where, self.strategy.mesh)
        workload = self.workload(batch, seq_len, microbatches, packed)
        self.sharded(workload)
        if missing := missing_compiler():
            raise ModuleNotFoundError(missing)
        return run_in_child(
            compile_program, self.model, self.strategy, workload, where, phase, remat,
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
        where = cluster(compilation.cluster)
        if not isinstance(self.model, ModelConfig):
            return predict(compilation, where, "bfloat16", rates)
        workload, phase = compilation.workload, compilation.phase
        needed = model_flops(self.model, workload.batch, workload.seq_len, cast(Phase, phase))
        sketched = phase != "train" and not isinstance(self.strategy.layers, CacheTiled)
        closed = self._closed_form(compilation, where, rates) if sketched else None
        return predict(
            compilation, where, self.model.dtype, rates, useful_flops=needed, estimate_s=closed
        )

    def _closed_form(self, compilation: Compilation, where: Cluster, rates: Rates | None) -> Figure:
        """Seconds of the same program, sketched by hand."""
        assert isinstance(self.model, ModelConfig)
        workload, decoder = compilation.workload, None
        if compilation.phase == "decode":
            prompts = ShardedTransformer(
                self.model, self.strategy, replace(workload, microbatches=1)
            )
            decoder = Decoder(prompts, new_tokens=1, microbatches=workload.microbatches)
            workload = prompts.workload
        found = estimate(self.model, self.strategy, workload, where, decoder=decoder, rates=rates)
        return Figure(found.cost.seconds, "s", "modelled")

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
        measure = measure_transformer
        if not isinstance(self.model, ModelConfig):
            measure = measure_module
            # A constructor's default dtype is then float32, as on a GPU and in `compile`.
            environment["JAX_ENABLE_X64"] = "0"
        return run_in_child(
            measure, self.model, self.strategy, workload, data, repeats,
            environment=environment, on_progress=on_progress,
        )  # fmt: skip


def compile_program(
    model: Any,
    strategy: Strategy,
    workload: Workload,
    where: Cluster,
    phase: Phase = "prefill",
    remat: Remat = "microbatch",
    *,
    on_progress: Progress,
) -> Compilation:
    """Compiles one program in this process: what `Program.compile` runs in its child."""
    if phase not in get_args(Phase):
        raise ValueError(f"phase must be one of {', '.join(get_args(Phase))}; got {phase!r}.")
    sharded = Program(model, strategy).sharded(workload)
    on_progress(f"{strategy.name} for {where.name}")
    known: dict[str, Any] = {}
    decoder, moved_by_xla = None, ""
    if isinstance(sharded, ShardedTransformer):
        moved_by_xla = _moved_by_xla(sharded)
        decoder = Decoder(sharded, new_tokens=1) if phase == "decode" else None
        microbatches = decoder.step_microbatches if decoder else workload.microbatches
        known = {"evenness": evenness(sharded, microbatches)}
        known |= {"compiler_options": strategy.compiler_options}
        routing = expected_routing(model, strategy, workload, decoder)
        if routing is not None:
            known |= {"trips": routing.trips, "ragged_bytes": routing.ragged_bytes}
            known["said"] = (routing.note,)
    if moved_by_xla:
        known["said"] = (*known.get("said", ()), moved_by_xla)

    def closed(transfers: Callable[[], Any]) -> Any:
        return None if moved_by_xla else transfers()

    if phase == "train":
        if not isinstance(sharded, ShardedTransformer):
            raise NotImplementedError(
                "compile: a training step of a foreign module is not made here. Write the step "
                "yourself and pass it to compile_for."
            )
        step = TrainStep(sharded, remat=remat)
        return compile_for(
            where,
            step.step,
            lambda mesh: (step.abstract_state(mesh), *sharded.abstract_inputs(mesh)),
            strategy.mesh,
            workload=workload,
            phase=phase,
            donate=(0,),
            partitioner=sharded.partitioner,
            transfers=closed(
                lambda: train_transfers(model, strategy, workload, remat, step.param_bytes)
            ),
            weight_bytes=step.weight_bytes(),
            on_progress=on_progress,
            **known,
        )
    if phase == "decode":
        if decoder is None:
            raise NotImplementedError(
                "compile: a foreign module has no KV cache that is known here. Write the decoding "
                "step yourself and pass it to compile_for."
            )
        return compile_for(
            where,
            decoder.step,
            lambda mesh: (
                sharded.abstract_state(mesh), decoder.abstract_cache(mesh),
                jax.ShapeDtypeStruct(
                    (workload.batch,), jnp.int32, sharding=decoder.token_sharding(mesh)
                ),
            ),
            strategy.mesh,
            workload=replace(workload, microbatches=decoder.step_microbatches),
            phase=phase,
            donate=(1,),
            partitioner=sharded.partitioner,
            transfers=closed(lambda: decode_transfers(decoder)),
            weight_bytes=decoder.weight_bytes(),
            kv_cache_bytes=decoder.kv_bytes(),
            on_progress=on_progress,
            **known,
        )  # fmt: skip
    if isinstance(sharded, ShardedTransformer):
        known |= {
            "transfers": closed(lambda: forward_transfers(model, strategy, workload)),
            "kv_cache_bytes": kv_cache_bytes(model, workload, strategy.mesh.size),
            "weight_bytes": sharded.weight_bytes(),
        }
    return compile_for(
        where,
        lambda mesh: sharded.forward(mesh, "last"),
        lambda mesh: (sharded.abstract_state(mesh), *sharded.abstract_inputs(mesh)),
        strategy.mesh,
        workload=workload,
        partitioner=sharded.partitioner,
        on_progress=on_progress,
        **known,
    )


def _moved_by_xla(sharded: ShardedTransformer) -> str:
    """What moves outside of the one map, where no closed form counts it; "" if nothing."""
    found = []
    if sharded.config.tie_embeddings:
        found.append("the token table reaches the unembedding")
    if sharded.columns != sharded.config.vocab_size:
        found.append(
            f"columns that fill up a vocabulary of {sharded.config.vocab_size} to "
            f"{sharded.columns} are cut off the logits"
        )
    said = " and ".join(found)
    return f"no closed form: {said} by collectives that XLA chooses" if found else ""
