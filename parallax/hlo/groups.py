"""The devices that a collective joins, in every form that HLO has, and the mesh axes they span."""

import itertools
import math
import re
from collections.abc import Collection, Mapping

import numpy as np

from parallax.hlo.limits import MAX_DEVICES, MAX_MESH_AXES, short
from parallax.hlo.shapes import HloError

Groups = tuple[tuple[int, ...], ...]

_LISTS = re.compile(r"\{(\{[0-9,]*\}(,\{[0-9,]*\})*)?\}")
_IOTA = re.compile(r"\[([0-9,]+)\]<=\[([0-9,]+)\](?:T\(([0-9,]+)\))?")
_MESH = re.compile(
    r"mesh\[((?:'[^']+'=\d{1,9},?\s*)+)\](?:,?\s*device_ids=\(((?:[^()]|\([^()]*\))*)\))?\s*\{([^{}]*)\}"
    r"(?:,?\s*device_ids=\(((?:[^()]|\([^()]*\))*)\))?"
)
_AXIS = re.compile(r"'([^']+)'=(\d{1,9})")
_AXIS_REF = re.compile(r"'([^']+)'(?::\((\d{1,9})\)(\d{1,9}))?")


def parse_groups(text: str, num_devices: int) -> Groups:
    """Parse the groups of device positions in a `replica_groups` attribute.

    Args:
      text: `{{0,2},{1,3}}`, `[2,8]<=[2,2,4]T(1,0,2)`, or `mesh['a'=4,'b'=4] {'b'}`, the last with
        `device_ids=(...)` or sub-axes `{'c':(2)2}`. `{}` is one group of all.
      num_devices: partitions of the module.

    Raises:
      HloError: another form, or groups that do not partition the devices equally.
    """
    text = text.strip()
    if _LISTS.fullmatch(text):
        inner = re.findall(r"\{([0-9,]*)\}", text[1:-1])
        groups = tuple(_numbers(g, text) for g in inner) or (tuple(range(num_devices)),)
    elif match := _IOTA.fullmatch(text):
        groups = _iota(match, text, num_devices)
    elif match := _MESH.fullmatch(text):
        groups = _mesh(match, text, num_devices)
    else:
        raise HloError(f"replica_groups {short(text)}: a form that is not understood.")
    members = sorted(itertools.chain.from_iterable(groups))
    if members != list(range(num_devices)) or len({len(g) for g in groups}) != 1:
        raise HloError(
            f"replica_groups {short(text)}: expected equal groups of devices 0 to "
            f"{num_devices - 1}, each once."
        )
    return groups


def _numbers(text: str, attribute: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", part) for part in parts):
        raise HloError(f"replica_groups {short(attribute)}: expected integers, got {short(text)}.")
    return tuple(int(part) for part in parts)


def _iota(match: re.Match, text: str, num_devices: int) -> Groups:
    shape, dims = _numbers(match[1], text), _numbers(match[2], text)
    order = _numbers(match[3], text) if match[3] else tuple(range(len(dims)))
    if sorted(order) != list(range(len(dims))) or math.prod(shape) != math.prod(dims):
        raise HloError(f"replica_groups {short(text)}: sizes or transposition do not agree.")
    if len(shape) != 2:
        raise HloError(f"replica_groups {short(text)}: expected [groups,size], got {shape}.")
    _check_size(dims, num_devices, text)
    ids = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape)
    return tuple(tuple(int(i) for i in row) for row in ids)


def _mesh(match: re.Match, text: str, num_devices: int) -> Groups:
    axes = {name: int(size) for name, size in _AXIS.findall(match[1])}
    if match[2] is not None and match[4] is not None:
        raise HloError(f"replica_groups {short(text)}: device_ids given twice.")
    device_ids = match[4] if match[2] is None else match[2]
    _check_size(axes.values(), num_devices, text)
    total = math.prod(axes.values())
    ids = np.arange(total)
    if device_ids is not None:
        ids = _device_ids(device_ids, text, num_devices)
    if ids.size != total or _AXIS_REF.sub("", match[3]).strip(" ,"):
        raise HloError(f"replica_groups {short(text)}: a mesh form that is not understood.")
    if len(axes) != len(_AXIS.findall(match[1])):
        raise HloError(f"replica_groups {short(text)}: an axis named twice is not understood.")
    dims, chosen = _cut_axes(axes, _references(match[3], axes, text), text)
    rest = [d for d in range(len(dims)) if d not in chosen]
    size = math.prod(dims[d] for d in chosen)
    table = ids.reshape(dims).transpose([*rest, *chosen]).reshape(-1, size)
    return tuple(tuple(int(i) for i in row) for row in table)


def _references(named: str, axes: Mapping[str, int], text: str) -> dict[str, tuple[str, str]]:
    """Return axis -> (size before, size) of the sub-axis named, or ("", "") for the whole axis."""
    matches = _AXIS_REF.findall(named)
    references = {name: (before, size) for name, before, size in matches}
    if len(references) != len(matches):
        raise HloError(f"replica_groups {short(text)}: an axis named twice is not understood.")
    if set(references) - set(axes):
        raise HloError(f"replica_groups {short(text)}: names an axis that the mesh does not have.")
    return references


def _cut_axes(
    axes: Mapping[str, int], references: Mapping[str, tuple[str, str]], text: str
) -> tuple[list[int], list[int]]:
    """Return the mesh's dims with sub-axes as dims of their own, and the named ones in order.

    An axis with a sub-axis becomes three dims: before it, the sub-axis, and after it.
    """
    dims: list[int] = []
    positions: dict[str, int] = {}
    for name, size in axes.items():
        positions[name] = len(dims)
        if not references.get(name, ("", ""))[1]:
            dims.append(size)
            continue
        before, part = (int(x) for x in references[name])
        if before * part == 0 or size % (before * part):
            raise HloError(
                f"replica_groups {short(text)}: sub-axis of '{name}' does not divide it."
            )
        positions[name] += 1
        dims += [before, part, size // (before * part)]
    return dims, [positions[name] for name in references]


def _check_size(dims: Collection[int], num_devices: int, text: str) -> None:
    if len(dims) > MAX_MESH_AXES or math.prod(dims) != num_devices:
        raise HloError(
            f"replica_groups {short(text)}: expected {num_devices} devices in up to "
            f"{MAX_MESH_AXES} dims."
        )


def _device_ids(text: str, attribute: str, num_devices: int) -> np.ndarray:
    if iota := re.fullmatch(r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?", text.strip()):
        dims = _numbers(iota[1], attribute)
        order = _numbers(iota[2], attribute) if iota[2] else tuple(range(len(dims)))
        if sorted(order) != list(range(len(dims))):
            raise HloError(f"replica_groups {short(attribute)}: not a transposition: {order}.")
        _check_size(dims, num_devices, attribute)
        return np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(-1)
    return np.array(_numbers(text, attribute))


def least_devices(text: str) -> int:
    """Return the fewest devices that the text of groups, pairs or a sharding can be about."""
    if mesh := re.search(r"mesh\[((?:'[^']+'=\d{1,9},?\s*)+)\]", text):
        numbers = [int(size) for _, size in _AXIS.findall(mesh[1])]
    elif iota := re.search(r"<=\[([0-9,]{1,200})\]", text):
        numbers = [int(n) for n in re.findall(r"\d{1,9}", iota[1])]
    else:
        places = re.sub(r"devices=\[[0-9,]*\]", "", text)
        numbers = [1 + max((int(n) for n in re.findall(r"\b\d{1,6}\b", places)), default=0)]
    return min(math.prod(numbers), MAX_DEVICES)


def parse_pairs(text: str) -> tuple[tuple[int, int], ...]:
    """Parse the (sender, receiver) positions in a `source_target_pairs` attribute.

    Raises:
      HloError: another form, or a device that sends or receives twice.
    """
    if not re.fullmatch(r"\{(\{\d{1,9},\d{1,9}\}(,\{\d{1,9},\d{1,9}\})*)?\}", text.strip()):
        raise HloError(f"source_target_pairs {short(text)}: a form that is not understood.")
    pairs = tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", text))
    if len({a for a, _ in pairs}) != len(pairs) or len({b for _, b in pairs}) != len(pairs):
        raise HloError(f"source_target_pairs {short(text)}: a device sends or receives twice.")
    return pairs


def axes_of_groups(groups: Groups, mesh_axes: Mapping[str, int]) -> tuple[str, ...] | None:
    """Find the mesh axes whose devices each group joins, in mesh order; None if no axes match.

    Args:
      groups: positions in `mesh.devices.flat`.
      mesh_axes: mesh axis -> size, in order.
    """
    # Axes of size 1 join nothing. The first group decides which axes it can be; all must agree.
    names = tuple(name for name, size in mesh_axes.items() if size > 1)
    sizes = tuple(mesh_axes[name] for name in names)
    places = np.unravel_index(np.array(groups[0]), sizes) if sizes else ()
    chosen = [d for d, place in enumerate(places) if len(set(place.tolist())) > 1]
    size = math.prod(sizes[d] for d in chosen)
    if size != len(groups[0]):
        return None
    rest = [d for d in range(len(names)) if d not in chosen]
    table = np.arange(math.prod(sizes)).reshape(sizes).transpose([*rest, *chosen])
    expected = {frozenset(row) for row in table.reshape(-1, size).tolist()}
    same = expected == {frozenset(g) for g in groups}
    return tuple(names[d] for d in chosen) if same else None


def axes_of_pairs(
    pairs: tuple[tuple[int, int], ...], mesh_axes: Mapping[str, int]
) -> tuple[str, ...]:
    """Find the fewest mesh axes within whose groups all pairs stay, in mesh order.

    A ring over ("node", "seq") crosses nodes in some of its pairs only; its axes are both.

    Args:
      pairs: (sender, receiver) positions in `mesh.devices.flat`.
      mesh_axes: mesh axis -> size, in order.

    Raises:
      HloError: a position outside the mesh.
    """
    outside = next((pair for pair in pairs if max(pair) >= math.prod(mesh_axes.values())), None)
    if outside is not None:
        raise HloError(f"source_target_pairs: {outside} is outside the mesh {dict(mesh_axes)}.")
    names = tuple(name for name, size in mesh_axes.items() if size > 1)
    if not pairs or not names:
        return ()
    places = np.unravel_index(np.array(pairs), tuple(mesh_axes[name] for name in names))
    moved = {n for n, at in zip(names, places, strict=True) if (at[:, 0] != at[:, 1]).any()}
    return tuple(n for n in names if n in moved)
