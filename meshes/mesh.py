"""The device mesh as a value: named axes and their sizes, before any device is looked at.

Importing this module does not import JAX; `build` and `abstract` do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax
    from jax.sharding import AbstractMesh, Mesh

# The axes that our own strategies use, farthest communication first.
MESH_AXES = (
    "replica", "data", "stage", "node", "tensor", "seq", "expert", "head_group", "head_slice",
)  # fmt: skip

_SINGLE = "single"
_NAME = re.compile(r"[^\s=,]+")


@dataclass(frozen=True, init=False, repr=False)
class MeshSpec:
    """Ordered mesh axes with their sizes, farthest communication first.

    Positions count row-major: with eight GPUs per node, `MeshSpec({"stage": 2, "tensor": 8})` keeps
    every `tensor` group inside one node. `MeshSpec({})` is one device and prints as `single`.

    Args:
      axes: mesh axis name -> size (devices along it), in order. Strategies use the names of
        `MESH_AXES`; meshes of other programs may have any.

    Raises:
      ValueError: a name that is empty, repeated or holds `=`, `,` or white space, or a size that is
        not a positive integer.
    """

    axes: tuple[tuple[str, int], ...]

    def __init__(self, axes: Mapping[str, int] | Iterable[tuple[str, int]]) -> None:
        pairs = tuple(axes.items() if isinstance(axes, Mapping) else axes)
        for index, (name, size) in enumerate(pairs):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(
                    f"MeshSpec: mesh axis {name!r}: expected a name without `=`, `,` and "
                    "white space, such as data."
                )
            if name in dict(pairs[:index]):
                raise ValueError(f"MeshSpec: mesh axis {name!r} is given twice. Give it once.")
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(
                    f"MeshSpec: mesh axis {name!r} has size {size!r}, expected an integer >= 1. "
                    f"Write for example {name}=4."
                )
        object.__setattr__(self, "axes", pairs)

    @classmethod
    def parse(cls, text: str) -> MeshSpec:
        """Parse the text that `str` writes.

        Args:
          text: `name=size` pairs joined by commas, such as `seq=4,tensor=4`, or `single`.

        Raises:
          ValueError: the text does not follow that grammar, or `MeshSpec` refuses an axis.
        """
        if text.strip() == _SINGLE:
            return cls({})
        pairs = []
        for part in text.split(","):
            name, equals, size = (piece.strip() for piece in part.partition("="))
            if not (name and equals and size.isascii() and size.isdigit()):
                raise ValueError(
                    f"mesh {text!r}: expected name=size, got {part.strip()!r}. "
                    "Write for example seq=4,tensor=4."
                )
            pairs.append((name, int(size)))
        return cls(pairs)

    @property
    def names(self) -> tuple[str, ...]:
        """The mesh axis names, in order."""
        return tuple(name for name, _ in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The mesh axis sizes, in order."""
        return tuple(size for _, size in self.axes)

    @property
    def size(self) -> int:
        """The number of devices in the mesh."""
        return math.prod(self.shape)

    def __getitem__(self, name: str) -> int:
        for own, size in self.axes:
            if own == name:
                return size
        raise KeyError(f"{self!r} has no mesh axis {name!r}; it has {self._names_text()}.")

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.axes) or _SINGLE

    def __repr__(self) -> str:
        return f"MeshSpec({', '.join(f'{name}={size}' for name, size in self.axes)})"

    def replace(self, **sizes: int) -> MeshSpec:
        """Return the same axes in the same order with some sizes changed.

        Raises:
          ValueError: the mesh does not have the axis, or a size is not positive.
        """
        for name in sizes:
            if name not in self:
                raise ValueError(
                    f"{self!r}.replace: no mesh axis {name!r}; it has {self._names_text()}. "
                    "Build a new MeshSpec to add one."
                )
        return MeshSpec([(name, sizes.get(name, size)) for name, size in self.axes])

    def build(
        self,
        # JAX declares `jax.Device` as a variable.
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    ) -> Mesh:
        """Build a `jax.sharding.Mesh` of these axes over real or virtual devices.

        Args:
          devices: exactly `size` devices in row-major order; None takes `jax.devices()`.

        Raises:
          ValueError: fewer or more devices than `size`.
        """
        import jax
        import numpy as np

        available = list(jax.devices() if devices is None else devices)
        if len(available) < self.size:
            raise ValueError(
                f"{self!r} needs {self.size} devices, got {len(available)}: run under "
                f"px.virtual_devices({self.size}), or use a mesh of {len(available)}."
            )
        if len(available) > self.size:
            raise ValueError(
                f"{self!r} needs {self.size} devices, got {len(available)}: name those to use, for "
                f"example build(jax.devices()[:{self.size}])."
            )
        grid = np.array(available, dtype=object).reshape(self.shape)
        return jax.sharding.Mesh(grid, self.names, axis_types=self._axis_types())

    def abstract(self) -> AbstractMesh:
        """Return a `jax.sharding.AbstractMesh` of these axes: shardings without devices."""
        import jax

        return jax.sharding.AbstractMesh(self.shape, self.names, axis_types=self._axis_types())

    def _axis_types(self) -> tuple[jax.sharding.AxisType, ...]:
        import jax

        return (jax.sharding.AxisType.Auto,) * len(self.axes)

    def _names_text(self) -> str:
        return ", ".join(self.names) or "none"
