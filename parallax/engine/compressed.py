"""Frozen values that describe what `compress` wrote."""

from dataclasses import dataclass
from pathlib import Path

from parallax.engine.layer_formats import Formats
from parallax.models.config import ModelConfig

# Assumed. In the record of `compress_quality`, without tuning, INT4 is below it and changes one
# next byte in twenty; 2:4 is above it, by a factor of two, and changes one in four.
LARGE_ERROR = 0.1


@dataclass(frozen=True)
class CompressedMatrix:
    """One matrix in all layers that store it in one format.

    Attributes:
      name: the matrix, such as "mlp/up_DF".
      form: the name of its format.
      layers: the numbers of these layers.
      dense_bytes, stored_bytes: bytes in all these layers.
      error: relative L2 of the stored against the dense weights, in the worst layer; measured.
    """

    name: str
    form: str
    layers: tuple[int, ...]
    dense_bytes: int
    stored_bytes: int
    error: float


@dataclass(frozen=True)
class CompressedLayer:
    """One compressed layer.

    Attributes:
      formats: those of attention and MLP.
      stored_bytes: bytes of its matrices.
      block_error: relative L2 of the block's output, residual stream included, against the dense
        block's, on random inputs of unit RMS; measured.
      damage: predicted by the proxy that chose the formats; None where they were given.
    """

    formats: Formats
    stored_bytes: int
    block_error: float
    damage: float | None


@dataclass(frozen=True)
class CompressedFolder:
    """A folder that `compress` wrote.

    Attributes:
      folder: its path.
      config: the model; its `compression` is None where layers have different formats.
      matrices: the compressed matrices.
      layers: the layers in order.
      rest_bytes: bytes that are not compressed: tables, norms, biases, routers.
    """

    folder: Path
    config: ModelConfig
    matrices: tuple[CompressedMatrix, ...]
    layers: tuple[CompressedLayer, ...]
    rest_bytes: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line where weights are so far off that the text is likely to be worse."""
        worst = max(self.matrices, key=lambda m: m.error)
        if worst.error <= LARGE_ERROR:
            return ()
        return (
            f"warning: stored as {worst.form}, the weights of {worst.name} are off by "
            f"{100 * worst.error:.0f} % (over {100 * LARGE_ERROR:.0f} %): without more training "
            "of the model its text is likely to be much worse. Compare some with parallax "
            "generate; parallax compress_quality measures what each format costs.",
        )

    @property
    def dense_bytes(self) -> int:
        """The bytes of the whole dense model."""
        return self.rest_bytes + sum(m.dense_bytes for m in self.matrices)

    @property
    def stored_bytes(self) -> int:
        """The bytes of the whole compressed model."""
        return self.rest_bytes + sum(m.stored_bytes for m in self.matrices)
