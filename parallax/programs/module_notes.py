"""The notes on a user module: parameters and dims that a strategy's rules do not split."""

from collections.abc import Collection

from parallax.programs.module_kinds import UserModule
from parallax.rules import LOGICAL_AXES
from parallax.strategy import Strategy

_SHOWN = 3


def replication_note(module: UserModule, strategy: Strategy) -> str:
    """Return one line on the parameters without logical axes; "" if there are none.

    The mesh axes are those that split weights. Where there are none, as under data parallelism, a
    replicated parameter is what the strategy wants, and only a module that names no axis at all is
    noted.
    """
    unnamed = [leaf for leaf in module.leaves if leaf.is_parameter and leaf.names is None]
    parameters = sum(leaf.is_parameter for leaf in module.leaves)
    axes = _axes_of_weights(module, strategy)
    if not unnamed or not axes:
        return ""
    sizes = ", ".join(f"{axis}={strategy.mesh_axes[axis]}" for axis in axes)
    largest = sorted(unnamed, key=lambda leaf: -leaf.nbytes)
    size = sum(leaf.nbytes for leaf in unnamed)
    return (
        f"{len(unnamed)} of {parameters} parameters ({_size(size)}) carry no logical axes and are "
        f"replicated over {sizes}: {_list([leaf.path for leaf in largest])}. Name their dims in "
        "the module, or with Program(..., logical_axes={path: names})"
    )


def _axes_of_weights(module: UserModule, strategy: Strategy) -> list[str]:
    """Return the mesh axes that split weights; all of them if the module names no axis."""
    named = {name for leaf in module.leaves for name in leaf.names or ()}
    weights = named | {name for name in LOGICAL_AXES if not name.startswith("act_")}
    used = {a for name, axes in strategy.rules.table().items() if name in weights for a in axes}
    if not used and not named:
        used = set(strategy.mesh_axes)
    return [axis for axis in strategy.mesh_axes if axis in used]


def unknown_names_note(names: Collection[str]) -> str:
    """Return one line on logical axes that the rules do not know; "" if there are none."""
    if not names:
        return ""
    some = sorted(names)
    return (
        f"logical axes that the rules do not know, whose dims are not split: {', '.join(some)}. "
        f"Map them with Rules(extra={{{some[0]!r}: ...}})"
    )


class AskedNames:
    """The name of a last rule, which records the logical axes that a traced module asks for.

    Flax compares each name of a constraint with the name of each rule and says nothing of names
    that equal none. This one equals nothing and sees them all.
    """

    def __init__(self):
        self.names: set[str] = set()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            self.names.add(other)
        return False

    def __hash__(self) -> int:
        return id(self)


def _list(paths: list[str]) -> str:
    more = len(paths) - _SHOWN
    return ", ".join(paths[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
