"""What storing weights in fewer bits costs a model, measured on one that is trained here.

`measure` trains a byte-level model, compresses it every way, and holds loss, a scored task, layer
errors and steps to a loss against the uncompressed model.
"""

from parallax.studies.quality.measuring import Settings, measure

__all__ = ["Settings", "measure"]
