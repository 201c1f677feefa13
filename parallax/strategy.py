"""The `Strategy`: how a model is split over a mesh, as data that prints and fits in a file."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from parallax import codec
from parallax.kernels import dispatch
from parallax.meshes.mesh import MeshSpec
from parallax.parallel.attention_parts import ATTENTION_PARTS, AttentionPart, Local
from parallax.parallel.experts import EXPERT_PARTS, ExpertPart, LocalExperts, Platform
from parallax.parallel.layer_parts import LAYER_PARTS, CacheTiled, LayerPart, Scan
from parallax.parallel.remat import Remat
from parallax.parallel.sharded_weights import Gather
from parallax.parallel.split import Split
from parallax.rules import Phase, Rules

FILE_VERSION = 4
# XLA's options that gather the next layer's weights beside this layer's products: started in the
# iteration before, and several at once.
_PREFETCH: dict[str, bool | int] = {
    "xla_gpu_pipeline_all_gather": 2,  # on
    "xla_gpu_experimental_parallel_collective_overlap_limit": 8,
}
# Opt-in kernel implementations.
KERNELS = ("mosaic", "cudnn")


@dataclass(frozen=True)
class Strategy:
    """The way a model is split: a mesh, rules and parts, under a name.

    Attributes:
      name: what reports call it.
      mesh: the device mesh.
      rules: logical axis -> mesh axes, per phase.
      attention: how attention crosses devices.
      experts: how tokens reach their experts; unused if the model has no experts.
      layers: how the stack of layers and the microbatches cross devices.
      reduce_dtype: dtype in which partial sums cross the wire; None is the activations' own.
      gather: when weights that the rules shard over `embed` are gathered: "layer", by each layer
        where it uses them, and again in the backward pass; "step", all of them once a step.
      kernels: the kernels that run on GPUs wherever they can; XLA computes the rest. "mosaic": our
        kernels for Hopper, validated or not (docs/generated/kernels.md); layers in weight tiles
        then have no gradient. "cudnn": the library's attention of whole sequences. None: the
        fastest validated implementation, see `kernels.dispatch`.

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
    gather: Gather = codec.later("layer", omit=True)
    kernels: str | None = None

    def __post_init__(self):
        if self.kernels not in (None, *KERNELS):
            raise ValueError(
                f"Strategy '{self.name}': kernels must be one of {', '.join(KERNELS)} or "
                f"None; got {self.kernels!r}."
            )
        if self.gather not in get_args(Gather):
            raise ValueError(
                f"Strategy '{self.name}': gather must be layer or step; got {self.gather!r}."
            )
        self.rules.check_mesh(dict(self.mesh.axes), f"Strategy '{self.name}'")
        self._check_part("attention", self.attention.seq_axes, "act_seq")
        self._check_part("attention", self.attention.slice_axes, "head_dim")
        self._check_part("layers", self.layers.stage_axes, "layers")
        self._check_experts()
        self._check_sharded_weights()
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

    def _check_sharded_weights(self) -> None:
        """Raise ValueError unless weights are sharded over devices with tokens of their own."""
        table, state = self.rules.table("train"), self.rules.table("optimizer")
        tokens = {*table["act_batch"], *table["act_seq"]}
        for what, axes in (("rules", table["embed"]), ("rules.optimizer", state["embed"])):
            if not set(axes) <= tokens:
                raise ValueError(
                    f"Strategy '{self.name}': {what} shard weights ('embed') over mesh axes "
                    f"{axes}, but the tokens are split over {tuple(sorted(tokens)) or 'none'}. "
                    "Map 'embed' to these, or split the tokens over more."
                )
        if table["embed"] and self.gather == "layer" and isinstance(self.layers, CacheTiled):
            raise ValueError(
                f"Strategy '{self.name}': layers in weight tiles cannot gather sharded weights one "
                "by one. Use gather='step'."
            )
        different = [n for n in table if n != "embed" and table[n] != state[n]]
        if different or state["embed"][: len(table["embed"])] != table["embed"]:
            raise ValueError(
                f"Strategy '{self.name}': rules.optimizer={self.rules.optimizer} must map 'embed' "
                f"to {table['embed']} and further mesh axes, and nothing else."
            )

    @property
    def shards_weights(self) -> bool:
        """Whether weights are sharded over devices that use them for different tokens."""
        return bool(self.rules.table()["embed"])

    @property
    def approximation(self) -> str:
        """The differences from the unsharded model's computation, in words; "" if none."""
        parts = (self.attention, self.experts)
        return "; ".join(a for a in (getattr(p, "approximation", "") for p in parts) if a)

    @property
    def compiler_options(self) -> dict[str, bool | int]:
        """The options for `jax.jit(..., compiler_options=)` on GPUs; usually none."""
        of_parts = [getattr(p, "compiler_options", {}) for p in (self.experts, self.layers)]
        if self.shards_weights and self.gather == "layer":
            of_parts.append(_PREFETCH)
        return {name: value for options in of_parts for name, value in options.items()}

    @property
    def mesh_axes(self) -> dict[str, int]:
        """The size of each mesh axis, keyed by name."""
        return dict(self.mesh.axes)

    def split(
        self, phase: Phase = "prefill", remat: Remat | None = None, platform: Platform = "cpu"
    ) -> Split:
        """Return this strategy's view for model code in one phase."""
        return Split(
            axes=self.rules.table(phase),
            mesh_axes=self.mesh_axes,
            attention=self.attention,
            experts=self.experts,
            reduce_dtype=self.reduce_dtype,
            remat=remat,
            platform=platform,
        )

    def for_heads(self, heads: int, kv_heads: int) -> "Strategy":
        """Return this strategy for a model with fewer key/value heads than devices that split them.

        Where the devices that split the query heads are a multiple of the key/value heads, every
        one of them computes all keys and values and keeps the head that its queries read. Any other
        model's strategy is this one, which refuses what it cannot split.
        """
        table = self.rules.table()
        over = table["kv_heads"]
        devices = math.prod(self.mesh_axes[axis] for axis in over)
        few = devices > kv_heads and not devices % kv_heads and not heads % devices
        if not few or over != table["heads"] or over != table["act_kv_heads"]:
            return self
        return self.replace(rules=self.rules.replace(kv_heads=None))

    def enabling(self, function: Callable) -> Callable:
        """Return `function`, traced with this strategy's kernels enabled."""

        @functools.wraps(function)
        def traced(*args, **kwargs):
            with dispatch.enabling(*() if self.kernels is None else (self.kernels,)):
                return function(*args, **kwargs)

        return traced

    def layer_groups(self, num_layers: int, period: int = 1) -> tuple[int, ...]:
        """Return the number of layers of each stage, in order; they start at multiples of `period`.

        Raises:
          ValueError: layers that the stages cannot share.
        """
        try:
            return self.layers.groups(num_layers, self.split().count("layers"), period)
        except ValueError as error:
            raise ValueError(f"Strategy '{self.name}': {error}") from None

    def replace(self, **changes: Any) -> "Strategy":
        """Return a copy of this strategy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the strategy as plain data, as a strategy file holds it."""
        return FILE.encode(self)

    @classmethod
    def from_dict(cls, data: Any, where: str = "strategy") -> "Strategy":
        """Return the strategy that `to_dict` encoded.

        Raises:
          ValueError: a missing or unknown field, or a part or version that does not exist.
        """
        return FILE.decode(data, where)

    def save(self, path: str | Path) -> None:
        """Write a strategy file (JSON)."""
        FILE.save(self, path, indent=2)

    @classmethod
    def load(cls, path: str | Path) -> "Strategy":
        """Read a strategy file.

        Raises:
          ValueError: a file that does not exist, is not JSON or is not a strategy.
        """
        return FILE.load(path)


def _of_this_version(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of a version 1 to 3 file with the defaults of the fields added since."""
    if data.get("strategy_version") == 1:
        data = _of_version_2(data)
    if data.get("strategy_version") == 2:
        data = {"kernels": None, **data, "strategy_version": 3}
    if data.get("strategy_version") == 3:
        data = {**data, "layers": _with_schedule(data.get("layers")), "strategy_version": 4}
    return data


def _with_schedule(layers: Any) -> Any:
    if not isinstance(layers, dict):
        return layers
    if layers.get("part") == "pipeline":
        return {"schedule": "gpipe", "virtual_stages": 1, **layers}
    return {**layers, "inner": _with_schedule(layers["inner"])} if "inner" in layers else layers


def _of_version_2(data: dict[str, Any]) -> dict[str, Any]:
    data = {"experts": codec.encode(LocalExperts()), **data, "strategy_version": 2}
    if isinstance(data.get("rules"), dict):
        data["rules"] = {"expert": None, **data["rules"]}
    if isinstance(data.get("layers"), dict) and data["layers"].get("part") == "pipeline":
        data["layers"] = {"handoff": "lockstep", "layers": None, **data["layers"]}
    return data


for _union, _members in (
    (AttentionPart, ATTENTION_PARTS),
    (ExpertPart, EXPERT_PARTS),
    (LayerPart, LAYER_PARTS),
):
    codec.tagged_union(_union, "part", _members)
FILE = codec.FileFormat(
    Strategy, "strategy file", "strategy_version", FILE_VERSION,
    "Write the file again with this version, by Strategy.save.", _of_this_version,
)  # fmt: skip
