"""What a family of published models is: one kind of mathematics under one set of tensor names."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from parallax.models.config import ModelConfig
from parallax.models.huggingface.fields import Fields
from parallax.models.huggingface.tensors import Piece


@dataclass(frozen=True)
class Family:
    """A family of models whose folders are read and written.

    Attributes:
      model_type: its name in config.json.
      architecture: the class of transformers that loads its folders.
      examples: published models, for the list of families.
      has: what its layers have that Llama's do not, in a few words.
      read: the settings, to a ModelConfig; it refuses what would be computed otherwise.
      write: the settings of a ModelConfig, None where the family cannot hold it. Whether it holds
        all of it is found by reading them again.
      tensors: the tensors of a model.
      defaults: settings that files leave out, as the family's configuration class in transformers
        has them.
      ignored: starts of the names of tensors in folders that belong to parts beside this model.
      quantized: the quantization methods whose weights are unpacked while loading.
    """

    model_type: str
    architecture: str
    examples: str
    has: str
    read: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any] | None]
    tensors: Callable[[ModelConfig], Iterable[Piece]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored: Callable[[ModelConfig], tuple[str, ...]] = lambda config: ()
    quantized: tuple[str, ...] = ()
