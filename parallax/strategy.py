"""A strategy: how a model is split over a mesh, as data that prints and fits in a file."""

import dataclasses
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parallax.kernels import dispatch
from parallax.meshes.mesh import MeshSpec
from parallax.parallel.attention_parts import ATTENTION_PARTS, AttentionPart, Local
from parallax.parallel.experts import EXPERT_PARTS, ExpertPart, LocalExperts, Platform
from parallax.parallel.layer_parts import LAYER_PARTS, LayerPart, Scan
from parallax.parallel.split import Remat, Split
from parallax.rules import LOGICAL_AXES, Phase, Rules

FILE_VERSION = 3
# What None does not take by itself, and a strategy may ask for.
KERNELS = ("mosaic", "cudnn")


@dataclass(frozen=True)
class Strategy:
    """Named parts over a mesh.

    Attributes:
      name: what reports call it.
      mesh: the device mesh.
      rules: logical axis -> mesh axes, per phase.
      attention: how attention crosses devices.
      experts: how tokens and experts meet; without experts in the model it says nothing.
      layers: how the stack of layers and the microbatches do.
      reduce_dtype: dtype in which partial sums cross the wire; None is the activations' own.
      kernels: what computes wherever it can, on GPUs, and XLA the rest. "mosaic": our kernels for
        Hopper, validated or not (docs/kernels.md); layers in slabs then have no gradient.
        "cudnn": the library's attention of whole sequences. None: the fastest that is validated,
        see `kernels.dispatch`.

    Raises:
      ValueError: rules and parts that contradict each other or the mesh.
    """

    name: str
    mesh: MeshSpec
    rules: Rules
    attention: AttentionPart = Local()
    experts: ExpertPart = field(default_factory=LocalExperts)
    layers: LayerPart = Scan()
    reduce_dtype: str | None = None
    kernels: str | None = None

    def __post_init__(self):
        if self.kernels not in (None, *KERNELS):
            raise ValueError(
                f"Strategy '{self.name}': kernels must be one of {', '.join(KERNELS)} or "
                f"None; got {self.kernels!r}."
            )
        self.rules.check_mesh(dict(self.mesh.axes), f"Strategy '{self.name}'")
        self._check_part("attention", self.attention.seq_axes, "act_seq")
        self._check_part("attention", self.attention.slice_axes, "head_dim")
        self._check_part("layers", self.layers.stage_axes, "layers")
        self._check_experts()
        table = self.rules.table()
        if table["act_norm_seq"] and table["lookup"]:
            raise ValueError(
                f"Strategy '{self.name}': 'act_norm_seq' and 'lookup' are both split. A residual "
                "stream split over the sequence looks up its own tokens at full width: map "
                "'lookup' to None."
            )
        if table["act_norm_seq"] and table["act_norm_seq"] != table["mlp"]:
            raise ValueError(
                f"Strategy '{self.name}': 'act_norm_seq' maps to {table['act_norm_seq']} and 'mlp' "
                f"to {table['mlp']}. Sequence-parallel norms split over the mesh axis that the "
                "matrices are split over: map both to the same."
            )

    def _check_part(self, part: str, axes: tuple[str, ...], name: str) -> None:
        ruled = self.rules.table()[name]
        if axes != ruled:
            raise ValueError(
                f"Strategy '{self.name}': {part}={getattr(self, part)} works over mesh axes "
                f"{axes or 'none'}, but the rules map '{name}' to {ruled or 'none'}. Make them "
                "agree."
            )

    def _check_experts(self) -> None:
        axes = self.experts.exchange_axes
        if not axes:
            return
        self._check_part("experts", axes, "expert")
        table = self.rules.table()
        tokens = {*table["act_batch"], *table["act_seq"]}
        if not set(axes) <= tokens:
            raise ValueError(
                f"Strategy '{self.name}': experts={self.experts} sends tokens over mesh axes "
                f"{axes}, but the rules split the tokens over {tuple(sorted(tokens)) or 'none'}. "
                "Map 'act_batch' or 'act_seq' to these axes too."
            )

    @property
    def approximation(self) -> str:
        """What is computed otherwise than the unsharded model does; "" if nothing."""
        parts = (self.attention, self.experts)
        return "; ".join(a for a in (getattr(p, "approximation", "") for p in parts) if a)

    @property
    def compiler_options(self) -> dict[str, bool | int]:
        """What to pass to `jax.jit(..., compiler_options=)` on GPUs; mostly nothing."""
        found = (getattr(p, "compiler_options", {}) for p in (self.experts, self.layers))
        return {name: value for options in found for name, value in options.items()}

    @property
    def mesh_axes(self) -> dict[str, int]:
        """Mesh axis -> size."""
        return dict(self.mesh.axes)

    def split(
        self, phase: Phase = "prefill", remat: Remat = "none", platform: Platform = "cpu"
    ) -> Split:
        """What model code sees of this strategy in one phase."""
        return Split(
            axes=self.rules.table(phase),
            mesh_axes=self.mesh_axes,
            attention=self.attention,
            experts=self.experts,
            reduce_dtype=self.reduce_dtype,
            remat=remat,
            platform=platform,
        )

    def enabling(self, function: Callable) -> Callable:
        """`function`, traced with this strategy's kernels enabled."""

        @functools.wraps(function)
        def traced(*args, **kwargs):
            with dispatch.enabling(*() if self.kernels is None else (self.kernels,)):
                return function(*args, **kwargs)

        return traced

    def layer_groups(self, num_layers: int) -> tuple[int, ...]:
        """Layers of each stage, in order. Raises ValueError if they cannot be dealt out."""
        try:
            return self.layers.groups(num_layers, self.split().count("layers"))
        except ValueError as error:
            raise ValueError(f"Strategy '{self.name}': {error}") from None

    def replace(self, **changes: Any) -> "Strategy":
        """The same strategy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a strategy file holds it."""
        rules = {n: getattr(self.rules, n) for n in LOGICAL_AXES}
        return {
            "strategy_version": FILE_VERSION,
            "name": self.name,
            "mesh": str(self.mesh),
            "rules": rules | {"decode": dict(self.rules.decode), "extra": dict(self.rules.extra)},
            "attention": _part_to_dict(self.attention, ATTENTION_PARTS),
            "experts": _part_to_dict(self.experts, EXPERT_PARTS),
            "layers": _part_to_dict(self.layers, LAYER_PARTS),
            "reduce_dtype": self.reduce_dtype,
            "kernels": self.kernels,
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "strategy") -> "Strategy":
        """Inverse of `to_dict`.

        Raises:
          ValueError: a field missing or unknown, a part or version that does not exist.
        """
        data = _of_this_version(data)
        fields = {field.name for field in dataclasses.fields(cls)}
        _require_fields(data, fields | {"strategy_version"}, where)
        if data["strategy_version"] != FILE_VERSION:
            raise ValueError(
                f"{where}: strategy_version is {data['strategy_version']!r}, this Parallax reads "
                f"{FILE_VERSION}. Write the file again with this version."
            )
        _require_fields(data["rules"], {*LOGICAL_AXES, "decode", "extra"}, f"{where}: rules")
        rules = {k: tuple(v) if isinstance(v, list) else v for k, v in data["rules"].items()}
        return cls(
            name=data["name"],
            mesh=MeshSpec.parse(data["mesh"]),
            rules=Rules(**rules),
            attention=_part_from_dict(data["attention"], ATTENTION_PARTS, f"{where}: attention"),
            experts=_part_from_dict(data["experts"], EXPERT_PARTS, f"{where}: experts"),
            layers=_part_from_dict(data["layers"], LAYER_PARTS, f"{where}: layers"),
            reduce_dtype=data["reduce_dtype"],
            kernels=data["kernels"],
        )

    def save(self, path: str | Path) -> None:
        """Writes a strategy file (JSON)."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Strategy":
        """Reads a strategy file.

        Raises:
          ValueError: not there, not JSON, or not a strategy.
        """
        where = f"strategy file {path}"
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(
                f"{where}: {error.strerror}. Give the path of a readable file."
            ) from None
        except ValueError as error:
            raise ValueError(f"{where}: not JSON: {error}. Write one with Strategy.save.") from None
        return cls.from_dict(data, where)


def _of_this_version(data: Any) -> Any:
    """A file of version 1 or 2 with what came later, as it was meant then."""
    if isinstance(data, dict) and data.get("strategy_version") == 1:
        data = _of_version_2(data)
    if isinstance(data, dict) and data.get("strategy_version") == 2:
        data = {"kernels": None, **data, "strategy_version": 3}
    return data


def _of_version_2(data: dict[str, Any]) -> dict[str, Any]:
    data = {"experts": _part_to_dict(LocalExperts(), EXPERT_PARTS), **data, "strategy_version": 2}
    if isinstance(data.get("rules"), dict):
        data["rules"] = {"expert": None, **data["rules"]}
    if isinstance(data.get("layers"), dict) and data["layers"].get("part") == "pipeline":
        data["layers"] = {"handoff": "lockstep", "layers": None, **data["layers"]}
    return data


def _require_fields(data: Any, expected: set[str], where: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object with fields, got {type(data).__name__}.")
    missing, unknown = expected - set(data), set(data) - expected
    if missing or unknown:
        raise ValueError(
            f"{where}: missing fields {sorted(missing)}, unknown fields {sorted(unknown)}. "
            f"Expected exactly {sorted(expected)}."
        )


def _part_to_dict(part: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """A part and the parts inside it; tuples become lists, as JSON has them."""
    names = {cls: name for name, cls in parts.items()}

    def plain(value: Any) -> Any:
        if type(value) in names:
            return _part_to_dict(value, parts)
        return list(value) if isinstance(value, tuple) else value

    fields = {f.name: plain(getattr(part, f.name)) for f in dataclasses.fields(part)}
    return {"part": names[type(part)], **fields}


def _part_from_dict(data: Any, parts: dict[str, Any], where: str) -> Any:
    if not isinstance(data, dict) or data.get("part") not in parts:
        raise ValueError(f"{where}: expected a 'part' of {', '.join(parts)}; got {data!r}.")
    cls = parts[data["part"]]
    _require_fields(data, {"part", *(f.name for f in dataclasses.fields(cls))}, where)

    kinds = tuple(parts.values())

    def value(field: dataclasses.Field) -> Any:
        plain = data[field.name]
        if isinstance(plain, dict) or isinstance(field.default, kinds):
            return _part_from_dict(plain, parts, f"{where}: {field.name}")
        return tuple(plain) if isinstance(plain, list) else plain

    return cls(**{field.name: value(field) for field in dataclasses.fields(cls)})
