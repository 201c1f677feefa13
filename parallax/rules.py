"""The rules of a strategy: which mesh axes split each logical axis, checked in three ways.

The checks: the mesh has every mesh axis (`Rules.check_mesh`), no mesh axis splits two dims of one
array (`Rules.spec`), and the sizes of the mesh axes divide the dim (`check_divides`).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from parallax import codec

Axes = str | tuple[str, ...] | None
Phase = Literal["train", "prefill", "decode"]
# The logical axis of a dim, several that split it in turn, or None.
Name = str | tuple[str, ...] | None
AxisTable = Mapping[str, tuple[str, ...]]  # logical axis -> mesh axes


@dataclass(frozen=True)
class Rules:
    """The mesh axes of each logical axis: one name, a tuple (major first), or None (replicated).

    Attributes:
      embed: the dim of every weight that reads or writes the residual stream. Mapped to mesh axes
        that split the tokens, weights are fully sharded (FSDP): a layer gathers them where it uses
        them. An axis that already splits another dim of a weight is left out of that weight.
      heads, kv_heads, head_dim: query heads, key/value heads, the width of one head.
      mlp: hidden width of the MLP, or of each expert.
      expert: the experts of a layer.
      vocab: columns of the unembedding, so also the last dim of the logits.
      lookup: width of the token and position tables. Looked-up rows are all-gathered to full width.
      layers: the stack of blocks.
      act_batch, act_seq, act_embed, act_heads, act_kv_heads, act_mlp, act_vocab: the dims of
        activations.
      act_norm_seq: a further split of the sequence for the residual stream and its norms only
        (Megatron sequence parallelism).
      decode: the logical axes that are split differently while decoding, as (logical axis, mesh
        axes) pairs; a sequence of one token cannot be split.
      optimizer: the logical axes that are split differently in the optimizer's state, likewise:
        `{"embed": "data"}` is ZeRO-1.
      extra: (logical axis, mesh axes) pairs for axes that only a user module names.
    """

    embed: Axes = None
    heads: Axes = None
    kv_heads: Axes = None
    head_dim: Axes = None
    mlp: Axes = None
    expert: Axes = None
    vocab: Axes = None
    lookup: Axes = None
    layers: Axes = None
    act_batch: Axes = None
    act_seq: Axes = None
    act_norm_seq: Axes = None
    act_embed: Axes = None
    act_heads: Axes = None
    act_kv_heads: Axes = None
    act_mlp: Axes = None
    act_vocab: Axes = None
    decode: Mapping[str, Axes] | tuple[tuple[str, Axes], ...] = codec.pairs()
    optimizer: Mapping[str, Axes] | tuple[tuple[str, Axes], ...] = codec.pairs(later=True)
    extra: Mapping[str, Axes] | tuple[tuple[str, Axes], ...] = codec.pairs()

    def __post_init__(self):
        object.__setattr__(self, "decode", _pairs(self.decode))
        object.__setattr__(self, "optimizer", _pairs(self.optimizer))
        object.__setattr__(self, "extra", _pairs(self.extra))
        for where in ("decode", "optimizer"):
            for name, _ in _pairs(getattr(self, where)):
                self._require_known(name, f"Rules.{where}")

    def table(self, phase: Phase | Literal["optimizer"] = "prefill") -> dict[str, tuple[str, ...]]:
        """Return the mesh axes of every logical axis in one phase; () is replicated.

        "optimizer" is the training phase as the optimizer's state is laid out.
        """
        return dict(_table(self, phase))

    def axes(self, name: str, phase: Phase = "prefill", *, where: str = "Rules") -> tuple[str, ...]:
        """Return the mesh axes of one logical axis. ValueError for a name the rules do not have."""
        self._require_known(name, where)
        return self.table(phase)[name]

    def spec(
        self, names: Sequence[Name], phase: Phase | Literal["optimizer"] = "prefill", *,
        where: str = "Rules",
    ) -> tuple[tuple[str, ...], ...]:  # fmt: skip
        """Return the mesh axes of each dim of one array.

        Args:
          names: the logical axis of each dim, or several that split it in turn; None is replicated.
          phase: "train", "prefill", "decode", or "optimizer" for the optimizer's state.
          where: the start of an error message.

        Raises:
          ValueError: a logical axis unknown to the rules, or a mesh axis that splits two dims,
            neither of them 'embed'.
        """
        table, seen = self.table(phase), {}
        own = embed_axes(names, table)

        def axes_of(name: str) -> tuple[str, ...]:
            self._require_known(name, where)
            axes = own if name == "embed" else table[name]
            for axis in axes:
                if axis in seen:
                    raise ValueError(
                        f"{where}: logical axes '{seen[axis]}' and '{name}' of one array both map "
                        f"to mesh axis '{axis}'. A mesh axis splits one dim: map one of them to "
                        "None."
                    )
                seen[axis] = name
            return axes

        return tuple(tuple(a for n in names_of(name) for a in axes_of(n)) for name in names)

    def check_mesh(self, mesh_axes: Mapping[str, int], where: str) -> None:
        """Raise ValueError if the rules name a mesh axis that the mesh does not have."""
        for phase in ("prefill", "decode", "optimizer"):
            for name, axes in self.table(phase).items():
                for axis in axes:
                    if axis not in mesh_axes:
                        raise ValueError(
                            f"{where}: logical axis '{name}' maps to mesh axis '{axis}', but the "
                            f"mesh has {', '.join(mesh_axes)}. Use one of these, or map '{name}' "
                            "to None."
                        )

    def replace(self, **changes: Axes) -> "Rules":
        """Return a copy of these rules with some logical axes mapped differently."""
        for name in changes:
            if name not in _PAIRED:
                self._require_known(name, "Rules.replace", standard_only=True)
        return dataclasses.replace(self, **changes)

    def _require_known(self, name: str, where: str, *, standard_only: bool = False) -> None:
        known = list(LOGICAL_AXES)
        if not standard_only:
            known += [n for n, _ in _pairs(self.extra)]
        if name not in known:
            raise ValueError(
                f"{where}: unknown logical axis '{name}'. Known: {', '.join(known)}. "
                f"Add it with Rules(extra=(('{name}', None),)), or a mesh axis instead of None."
            )

    def __str__(self) -> str:
        def show(axes: Axes) -> str:
            return "*".join(_as_tuple(axes)) or "None"

        lines = [f"{name:<13}-> {show(getattr(self, name))}" for name in LOGICAL_AXES]
        lines += [f"{name:<13}-> {show(axes)}" for name, axes in _pairs(self.extra)]
        for phase in ("decode", "optimizer"):
            pairs = _pairs(getattr(self, phase))
            lines += [f"{name:<13}-> {show(axes)}   ({phase})" for name, axes in pairs]
        return "\n".join(lines)


_PAIRED = ("decode", "optimizer", "extra")
LOGICAL_AXES = tuple(f.name for f in dataclasses.fields(Rules) if f.name not in _PAIRED)


def names_of(name: Name) -> tuple[str, ...]:
    """Return the logical axes that split one dim, in turn."""
    return () if name is None else (name,) if isinstance(name, str) else name


def embed_dim(names: Sequence[Name]) -> int | None:
    """Return the dim that `embed` splits in an array with these logical axes; None without one."""
    return next((dim for dim, name in enumerate(names) if "embed" in names_of(name)), None)


def embed_axes(names: Sequence[Name], table: AxisTable) -> tuple[str, ...]:
    """Return the mesh axes of `embed` in one array: those that split no other dim of it."""
    if embed_dim(names) is None:
        return ()
    flat = [n for name in names for n in names_of(name)]
    taken = {axis for n in flat if n != "embed" for axis in table.get(n, ())}
    return tuple(axis for axis in table.get("embed", ()) if axis not in taken)


@functools.lru_cache(maxsize=1024)
def _table(rules: Rules, phase: str) -> dict[str, tuple[str, ...]]:
    table = {name: _as_tuple(getattr(rules, name)) for name in LOGICAL_AXES}
    table |= {name: _as_tuple(axes) for name, axes in _pairs(rules.extra)}
    if phase in ("decode", "optimizer"):
        table |= {name: _as_tuple(axes) for name, axes in _pairs(getattr(rules, phase))}
    return table


def check_divides(
    size: int, axes: Sequence[str], mesh_axes: Mapping[str, int], *, where: str, name: str
) -> None:
    """Raise ValueError unless the sizes of the mesh axes divide the size of one dim."""
    parts = 1
    for axis in axes:
        parts *= mesh_axes[axis]
    if size % parts:
        axis = "*".join(axes)
        raise ValueError(
            f"{where} ('{name}', size {size}) maps to mesh axis '{axis}' (size {parts}), but "
            f"{parts} does not divide {size}. Use a multiple of {parts}, or map '{name}' to None."
        )


def _as_tuple(axes: Axes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _pairs(value: Mapping[str, Axes] | Sequence[tuple[str, Axes]]) -> tuple[tuple[str, Axes], ...]:
    items = value.items() if isinstance(value, Mapping) else value
    return tuple((n, tuple(a) if isinstance(a, list) else a) for n, a in items)
