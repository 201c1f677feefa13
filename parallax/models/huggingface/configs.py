"""The translation of config.json to ModelConfig and back, by family.

Settings that this model would compute differently are refused by name. Settings that a file leaves
out have the values of the family's configuration class in transformers.
"""

import dataclasses
from pathlib import Path
from typing import Any

from parallax.models.config import DType, ModelConfig
from parallax.models.huggingface.families import FAMILIES, Family
from parallax.models.huggingface.fields import Fields, read_fields
from parallax.models.huggingface.settings import kinds_by_layer
from parallax.models.layer_kinds import LayerKind, Router

_DTYPES: tuple[DType, ...] = ("float32", "float16", "bfloat16", "float64")
# Fields that a folder need not give back of a config: what it holds elsewhere, or what training
# alone uses and some families' files lack.
_ELSEWHERE = ("name", "dtype", "compression", "load_balance")
# Ends of the names of classes that predict next tokens, as this model does. Others classify or
# embed texts, draft tokens for another model, or see later tokens.
_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# Quantization method -> the settings of it that loading unpacks (`unpacking.py`).
_QUANTIZED = {"mxfp4": {}, "fp8": {"fmt": "e4m3", "weight_block_size": [128, 128]}}


def read_config(folder: str | Path, dtype: DType | None = None) -> ModelConfig:
    """Return the model that a folder's config.json describes.

    Args:
      folder: a folder, or its config.json.
      dtype: dtype of parameters and activations; None takes the file's. A file with none has
        float32, or what quantized weights unpack to: bfloat16.

    Raises:
      ValueError: a file that is missing, not JSON or of another family, or unsupported settings,
        all of which are named.
    """
    path = Path(folder)
    path = path / "config.json" if path.is_dir() else path
    fields = read_fields(path, hint="Give a folder with config.json and *.safetensors.")
    family = _family_named(fields)
    if family is None:
        raise ValueError(
            f"{path}: model_type is {fields.values.get('model_type')!r}, this Parallax reads "
            f"{', '.join(FAMILIES)}. {_next_step(fields)}"
        )
    config = _read(fields, family)
    return config.replace(
        name=path.resolve().parent.name, dtype=_dtype(fields) if dtype is None else dtype
    )


def quantization(folder: Path) -> str:
    """Return the method by which a folder's weights are quantized; "" where they are not."""
    path = folder / "config.json" if folder.is_dir() else folder
    if not path.is_file():
        return ""
    settings = read_fields(path, hint="").inner("quantization_config").values
    return str(settings.get("quant_method", ""))


def _family_named(fields: Fields) -> Family | None:
    """Return the family that a file's model_type names; None if it is not read."""
    name = fields.values.get("model_type")
    return FAMILIES.get(name) if isinstance(name, str) else None


def _next_step(fields: Fields) -> str:
    """Return what to do with a file of another model_type."""
    text = fields.values.get("text_config")
    inside = _family_named(Fields(fields.path, text)) if isinstance(text, dict) else None
    if inside is not None:
        return (
            f"Its text_config is a {inside.model_type}, which is read: make that object a "
            "config.json of its own for the text model alone."
        )
    classes = fields.values.get("architectures")
    named = classes if isinstance(classes, list) else []
    alike = [one.model_type for one in FAMILIES.values() if one.architecture in named]
    if alike:
        return f"Its architectures are {alike[0]}'s: with that model_type a copy of it is read."
    return (
        "Give a folder of one of these, the sizes as a ModelConfig, or a module of your own "
        "(px.compile_for)."
    )


def _read(fields: Fields, family: Family) -> ModelConfig:
    for place, names in (
        (fields, ("quantization_config", "compression_config")),
        (fields.inner("text_config"), ("quantization_config",)),
    ):
        for name in names:
            place.inner(name)  # an object, or nothing
            place.refuse(
                name, lambda x: not x or _is_unpacked(x, family.quantized),
                " or ".join(("none", *family.quantized)),
            )  # fmt: skip
    fields.refuse("architectures", _predicts_tokens, "a model that predicts the next token")
    fields = fields.over(family.defaults)
    config = family.read(fields)
    fields.finish()
    return config


def _predicts_tokens(architectures: Any) -> bool:
    """Return whether the classes that a file names have a head of next tokens."""
    known = isinstance(architectures, list) and all(isinstance(x, str) for x in architectures)
    return not architectures or (known and any(x.endswith(_WITH_HEAD) for x in architectures))


def _is_unpacked(settings: dict[str, Any], methods: tuple[str, ...]) -> bool:
    """Return whether quantized weights are among those that loading unpacks."""
    layout = _QUANTIZED.get(str(settings.get("quant_method")), {})
    return settings.get("quant_method") in methods and all(
        settings.get(name, ours) == ours for name, ours in layout.items()
    )


def family_of(config: ModelConfig) -> Family:
    """Return the first family whose folders give this model back.

    Raises:
      ValueError: there is none; the closest one is named, with what it would lose.
    """
    closest: tuple[list[str], Family] | None = None
    for family in FAMILIES.values():
        lost = lost_by(family, config)
        if lost == []:
            return family
        if lost is not None and (closest is None or len(lost) < len(closest[0])):
            closest = lost, family
    near = "" if closest is None else (
        f" A folder of {closest[1].model_type} would compute something else: "
        f"{'; '.join(closest[0])}."
    )  # fmt: skip
    raise ValueError(
        f"Model '{config.name}' is none of {', '.join(FAMILIES)}.{near} Save it as a checkpoint "
        "of parallax train instead."
    )


def to_fields(config: ModelConfig, family: str | None = None) -> dict[str, Any]:
    """Return the fields of config.json for a model.

    Args:
      config: the model.
      family: the model_type to write; None is the first that computes the same.

    Raises:
      ValueError: no family, or not this one, computes the same.
    """
    chosen = family_of(config) if family is None else named_family(config, family)
    written = chosen.write(config)
    assert written is not None
    return {
        "model_type": chosen.model_type, "architectures": [chosen.architecture],
        **written, "dtype": config.dtype,
    }  # fmt: skip


def family_in(folder: str | Path, config: ModelConfig) -> Family:
    """Return the family of a folder's tensors: that of its config.json if it has this model.

    Otherwise it is the first that writes the model. ValueError if there is none.
    """
    path = Path(folder) / "config.json"
    fields = read_fields(path, hint="") if path.is_file() else None
    family = _family_named(fields) if fields is not None else None
    if fields is not None and family is not None and _holds(fields, family, config):
        return family
    return family_of(config)


def _holds(fields: Fields, family: Family, config: ModelConfig) -> bool:
    """Return whether a file describes this model, or its family could."""
    try:
        if _meaning(_read(fields, family)) == _meaning(config):
            return True
    except ValueError:
        pass
    return lost_by(family, config) == []


def named_family(config: ModelConfig, name: str) -> Family:
    """Return a family by name. ValueError if it does not hold the model, or is not written."""
    lost = lost_by(FAMILIES[name], config) if name in FAMILIES else None
    if lost == []:
        return FAMILIES[name]
    raise ValueError(
        f"Model '{config.name}': family {name!r} "
        + (f"would compute something else: {'; '.join(lost)}." if lost else "cannot hold it.")
        + f" Leave it out, or give one of {', '.join(FAMILIES)} that can."
    )


def lost_by(family: Family, config: ModelConfig) -> list[str] | None:
    """Return what a family's folder would lose of a model; None if it cannot hold it at all."""
    written = family.write(config)
    if written is None:
        return None
    try:
        back = _read(Fields(Path("config.json"), written), family)
    except ValueError:
        return None
    ours, theirs = _meaning(config), _meaning(back)
    return [
        f"{name} is {ours[name]!r} (there: {theirs.get(name)!r})"
        for name in ours
        if ours[name] != theirs.get(name)
    ]


def _meaning(config: ModelConfig) -> dict[str, Any]:
    """Return a model's fields that matter, in one way for all that compute the same."""
    held = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in _ELSEWHERE
    }
    if config.positions != "rope":
        del held["rope_theta"]
    if config.gate != "clamped":
        del held["gate_limit"]
    if not config.num_experts:
        del held["experts_per_token"]
    if config.rotary_dim == config.head_dim:
        held["rotary_dim"] = None
    if config.router == Router():
        held["router"] = None
    if config.score_scale == config.head_dim**-0.5:
        held["score_scale"] = None
    kinds = kinds_by_layer(config)
    held["pattern"] = [] if all(kind == LayerKind() for kind in kinds) else kinds
    return held


def _dtype(fields: Fields) -> DType:
    places = fields, fields.inner("text_config")
    named = (p.values.get(name) for p in places for name in ("dtype", "torch_dtype"))
    usual = "bfloat16" if fields.values.get("quantization_config") else "float32"
    dtype = next((x for x in named if x), usual)
    if dtype not in _DTYPES:
        raise ValueError(f"{fields.path}: dtype is {dtype!r}, expected {', '.join(_DTYPES)}.")
    return dtype
