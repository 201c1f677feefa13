"""The partitioning systems: one file and one constructor each, for any number of devices."""

from collections.abc import Callable

from parallax.meshes.mesh import MeshSpec
from parallax.strategies.data_parallel import data_parallel
from parallax.strategies.hybrid import hybrid
from parallax.strategies.layerwise import layerwise
from parallax.strategies.ring_sequence import ring_sequence
from parallax.strategies.tensor_pipeline import tensor_pipeline
from parallax.strategy import Strategy

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "tensor_pipeline": tensor_pipeline,
    "ring_sequence": ring_sequence,
    "data_parallel": data_parallel,
    "layerwise": layerwise,
}

# Mesh axis -> the constructor's argument for its size.
_ARGUMENTS = {
    "tensor_pipeline": {"stage": "stage", "tensor": "tensor"},
    "ring_sequence": {"seq": "devices"},
    "data_parallel": {"data": "devices"},
    "layerwise": {"stage": "stages"},
}


def build(
    name: str, mesh: MeshSpec | None = None, *, devices: int = 16, node_size: int = 8
) -> Strategy:
    """A strategy by name, over a given mesh or filling a cluster.

    Args:
      name: of STRATEGIES, or several joined by "+" for a hybrid, which needs `mesh`.
      mesh: its axes must be the strategy's; None fills the cluster.
      devices: of the cluster.
      node_size: devices that share a fast link; tensor groups stay inside.

    Raises:
      ValueError: an unknown name, or a mesh with other axes.
    """
    names = name.split("+")
    for part in names:
        if part not in STRATEGIES:
            raise ValueError(
                f"unknown strategy {part!r}. Use one of: {', '.join(STRATEGIES)}; several joined "
                "by '+'; or the path of a strategy file ending in .json."
            )
    if mesh is not None:
        return _over(names, mesh)
    if len(names) > 1:
        axes = sorted({axis for part in names for axis in _ARGUMENTS[part]})
        raise ValueError(
            f"strategy '{name}': a hybrid needs a mesh that says how the devices are divided. "
            f"Give one over {', '.join(axes)}, such as "
            f"{','.join(f'{axis}=4' for axis in axes[:2])}."
        )
    if name == "tensor_pipeline":
        tensor = min(node_size, 8, devices)
        return tensor_pipeline(tensor, devices // tensor)
    return STRATEGIES[name](devices)


def _over(names: list[str], mesh: MeshSpec) -> Strategy:
    """Named strategies over the mesh axes that are theirs."""
    for axis in mesh.names:
        if not any(axis in _ARGUMENTS[name] for name in names):
            known = ", ".join(axis for name in names for axis in _ARGUMENTS[name])
            raise ValueError(
                f"mesh {mesh}: strategy '{'+'.join(names)}' has no mesh axis '{axis}', only "
                f"{known}. Give these, or compare it in a run of its own."
            )
    made = []
    for name in names:
        arguments = _ARGUMENTS[name]
        sizes = dict.fromkeys(arguments.values(), 1)
        sizes |= {arguments[axis]: size for axis, size in mesh.axes if axis in arguments}
        made.append(STRATEGIES[name](**sizes))
    return made[0] if len(made) == 1 else hybrid(*made)


__all__ = ["STRATEGIES", "build", "data_parallel", "hybrid", "layerwise", "ring_sequence",
           "tensor_pipeline"]  # fmt: skip
