"""Programs without a fault: an explanation should find nothing in them to change."""

from tests.explanations.clean_inference import INFERENCE
from tests.explanations.clean_training import TRAINING

CLEAN = (*TRAINING, *INFERENCE)
