"""The quality cost of compressed weights, measured on a small model trained for the purpose.

`measure` trains a byte-level model, compresses it in every format, and compares loss, a scored
task, layer errors and steps to a loss with the uncompressed model.
"""

from parallax.studies.quality.measuring import Settings, measure

__all__ = ["Settings", "measure"]
