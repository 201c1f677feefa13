"""Programs without a fault: an explanation should find nothing in them to change."""

from tests.explain.clean_inference import INFERENCE
from tests.explain.clean_training import TRAINING

CLEAN = (*TRAINING, *INFERENCE)
