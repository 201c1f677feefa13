"""The settings of the golden folders' config.json, and their reading with others."""

import json
from pathlib import Path

from parallax.models import huggingface

GOLDEN = Path(__file__).parent / "golden"


def fields_of(folder):
    return json.loads((folder / "config.json").read_text())


def fields_of_family(family):
    """The settings of the tiny model of a family."""
    if family == "gemma3":  # the text model of one that also sees
        return {"model_type": "gemma3", "text_config": fields_of(GOLDEN / "gemma3_text")}
    return fields_of(GOLDEN / family)


def read(fields, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    return huggingface.read_config(tmp_path)
