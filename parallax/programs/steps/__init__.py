"""Steps: what one call of a prefill, a decoding step or a training step runs, and what is derived.

`make_step` asks once which phase is meant; a lens, an estimate or a record then asks the step. A
new phase, or a new way to run one, is a class beside these.
"""

from parallax.programs.steps.making import make_step
from parallax.programs.steps.model_step import ModelStep
from parallax.programs.steps.of_module import ModulePrefill
from parallax.programs.steps.of_transformer import Decoding, Prefill, Training, TransformerStep

__all__ = [
    "Decoding",
    "ModelStep",
    "ModulePrefill",
    "Prefill",
    "Training",
    "TransformerStep",
    "make_step",
]
