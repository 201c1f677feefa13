"""What `compress` wrote, as frozen values."""

from dataclasses import dataclass
from pathlib import Path

from parallax.engine.layer_formats import Formats
from parallax.models.config import ModelConfig


@dataclass(frozen=True)
class CompressedMatrix:
    """One matrix of all layers that store it in one format.

    Attributes:
      name: such as "mlp/up_DF".
      form: its format's name.
      layers: their numbers.
      dense_bytes, stored_bytes: of these layers.
      error: relative L2 of the stored weights against the dense ones, of the worst layer; measured.
    """

    name: str
    form: str
    layers: tuple[int, ...]
    dense_bytes: int
    stored_bytes: int
    error: float


@dataclass(frozen=True)
class CompressedLayer:
    """One layer.

    Attributes:
      formats: of attention and MLP.
      stored_bytes: of its matrices.
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
    """What `compress` wrote.

    Attributes:
      folder: where.
      config: the model; its `compression` is None where layers have different formats.
      matrices: what was compressed.
      layers: in order.
      rest_bytes: what was not: tables, norms, biases, routers.
    """

    folder: Path
    config: ModelConfig
    matrices: tuple[CompressedMatrix, ...]
    layers: tuple[CompressedLayer, ...]
    rest_bytes: int

    @property
    def dense_bytes(self) -> int:
        """Of the whole model before."""
        return self.rest_bytes + sum(m.dense_bytes for m in self.matrices)

    @property
    def stored_bytes(self) -> int:
        """Of the whole model now."""
        return self.rest_bytes + sum(m.stored_bytes for m in self.matrices)
