"""The constructor of steps, the one place that decides by phase."""

from typing import get_args, overload

from parallax.models.config import ModelConfig
from parallax.parallel.remat import Remat
from parallax.programs.decoding import Decoder
from parallax.programs.module_kinds import Constructor
from parallax.programs.sharded_model import ShardedTransformer
from parallax.programs.steps.model_step import ModelStep
from parallax.programs.steps.of_module import ModulePrefill
from parallax.programs.steps.of_transformer import Decoding, Prefill, Training, TransformerStep
from parallax.programs.training import TrainStep
from parallax.programs.user_module import ShardedModule
from parallax.rules import Phase
from parallax.strategy import Strategy
from parallax.workload import Workload

_NOT_OF_MODULES: dict[Phase, str] = {
    "train": "a training step of a user module is not supported. Write the step yourself and pass "
    "it to compile_for.",
    "decode": "the KV cache of a user module is unknown. Write the decoding step yourself and pass "
    "it to compile_for.",
}


@overload
def make_step(
    model: ModelConfig, strategy: Strategy, workload: Workload, phase: Phase = "prefill",
    remat: Remat = "layer",
) -> TransformerStep: ...  # fmt: skip
@overload
def make_step(
    model: Constructor, strategy: Strategy, workload: Workload,
    phase: Phase = "prefill", remat: Remat = "layer",
) -> ModulePrefill: ...  # fmt: skip
def make_step(
    model: ModelConfig | Constructor,
    strategy: Strategy,
    workload: Workload,
    phase: Phase = "prefill",
    remat: Remat = "layer",
) -> ModelStep:
    """Return the step of a model under a strategy in one phase.

    Args:
      model: a ModelConfig, or what makes a user module.
      strategy: how the model is split.
      workload: batch, length and microbatches. Those of a decoding step are its prompts'; the step
        has its own number of microbatches, one per stage (see `with_microbatches`).
      phase: "prefill", "decode" or "train".
      remat: what a training step recomputes.

    Raises:
      ValueError: an unknown phase, sizes that do not divide, or a model that cannot run the phase.
      NotImplementedError: a phase that user modules do not support.
    """
    if phase not in get_args(Phase):
        raise ValueError(f"phase must be one of {', '.join(get_args(Phase))}; got {phase!r}.")
    if not isinstance(model, ModelConfig):
        module = ShardedModule(model, strategy, workload)
        if phase in _NOT_OF_MODULES:
            raise NotImplementedError(f"compile: {_NOT_OF_MODULES[phase]}")
        return ModulePrefill(module)
    sharded = ShardedTransformer(model, strategy, workload)
    if phase == "decode":
        return Decoding(Decoder(sharded, new_tokens=1))
    if phase == "train":
        return Training(TrainStep(sharded, remat=remat))
    return Prefill(sharded)
