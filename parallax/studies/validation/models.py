"""The models that tables of measured steps name: those beside the shipped tables, or a user's."""

import functools
from pathlib import Path

from parallax.codec import read_json
from parallax.models.config import ModelConfig
from parallax.models.huggingface import read_config

TABLES = Path(__file__).parent / "tables"
_MODELS = TABLES / "models"


@functools.cache
def model_of(name: str) -> ModelConfig:
    """Read the model of a row.

    Args:
      name: a shipped model, or the path of a config.json, its folder, or a ModelConfig's JSON file.

    Raises:
      ValueError: there is no such model, or it is not supported.
    """
    path = _MODELS / f"{name}.json"
    if not path.is_file():
        path = Path(name, "config.json") if Path(name).is_dir() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _MODELS.glob("*.json")))
        raise ValueError(
            f"model {name!r} is neither a file nor one of: {known}. Give the path "
            "of a config.json, relative to the table."
        )
    data = read_json(path, str(path), "Give a config.json.")
    is_published = isinstance(data, dict) and "model_type" in data
    config = read_config(path) if is_published else ModelConfig.from_dict(data, str(path))
    return config.replace(name=name)
