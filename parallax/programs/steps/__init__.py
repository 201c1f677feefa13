"""The steps: what one call of a prefill, decoding or training step runs, and its derived figures.

`make_step` alone decides by phase; lenses, estimates and records then use the step. A new phase, or
a new way to run one, is another class beside these.
"""

from parallax.parallel.remat import Remat
from parallax.programs.steps.making import make_step
from parallax.programs.steps.model_step import ModelStep
from parallax.programs.steps.of_module import ModulePrefill
from parallax.programs.steps.of_transformer import Decoding, Prefill, Training, TransformerStep
from parallax.rules import Phase

__all__ = [
    "Decoding",
    "ModelStep",
    "ModulePrefill",
    "Phase",
    "Prefill",
    "Remat",
    "Training",
    "TransformerStep",
    "make_step",
]
