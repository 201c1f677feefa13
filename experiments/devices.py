"""Set-up of the devices that a run asks for, before JAX starts."""

from parallax.distributed.processes import process_count
from parallax.lenses.environment import virtual_devices
from parallax.meshes.mesh import MeshSpec
from parallax.requests.naming import resolve_strategy
from parallax.strategy import Strategy

_MOST_VIRTUAL = 16  # a strategy without a mesh fills these


def use_devices(
    strategy: str | Strategy | None, mesh: str | MeshSpec | None, virtual: bool, dtype: str | None
) -> None:
    """Set up as many virtual CPU devices as the mesh needs, if `virtual`, and float64 if asked.

    Several processes have equal shares of them.

    Raises:
      ValueError: the strategy is unknown, or cannot have the mesh.
    """
    import jax

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if virtual:
        most = _MOST_VIRTUAL
        if mesh is not None:
            most = max(most, (MeshSpec.parse(mesh) if isinstance(mesh, str) else mesh).size)
        size = resolve_strategy(strategy, mesh, most).mesh.size
        if size % process_count():
            raise ValueError(
                f"{size} virtual devices do not divide by {process_count()} processes. Use another "
                "mesh or number of processes."
            )
        virtual_devices(size // process_count())
