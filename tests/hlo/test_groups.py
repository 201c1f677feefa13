"""Replica groups and source-target pairs: parsed, and resolved to mesh axes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallax.hlo.groups import axes_of_groups, axes_of_pairs, parse_groups, parse_pairs
from parallax.hlo.shapes import HloError

MESH = {"a": 2, "b": 4, "c": 2}
subsets = st.sets(st.sampled_from(sorted(MESH)))


def _members(chosen, mesh=MESH):
    """Groups by definition: devices that agree on every axis but the chosen ones."""
    groups: dict[tuple, list[int]] = {}
    for position, at in enumerate(itertools.product(*(range(n) for n in mesh.values()))):
        key = tuple(i for name, i in zip(mesh, at, strict=True) if name not in chosen)
        groups.setdefault(key, []).append(position)
    return {frozenset(g) for g in groups.values()}


def _sets(groups):
    return {frozenset(g) for g in groups}


def _mesh_text(names, mesh=MESH):
    axes = ",".join(f"'{k}'={v}" for k, v in mesh.items())
    return f"mesh[{axes}] {{{','.join(f"'{n}'" for n in names)}}}"


@given(subsets, st.randoms())
def test_three_forms_of_the_same_groups(chosen, random):
    expected = _members(chosen)
    order = sorted(chosen)
    random.shuffle(order)
    names = list(MESH)
    perm = [names.index(n) for n in names if n not in chosen]
    perm += [names.index(n) for n in names if n in chosen]
    size = math.prod(MESH[n] for n in chosen)
    iota = f"[{16 // size},{size}]<=[2,4,2]T({','.join(map(str, perm))})"
    lists = "{" + ",".join("{" + ",".join(map(str, g)) + "}" for g in expected) + "}"
    for text in (_mesh_text(order), iota, lists):
        groups = parse_groups(text, 16)
        assert _sets(groups) == expected
        assert axes_of_groups(groups, MESH) == tuple(n for n in MESH if n in chosen)


def test_no_groups_are_one_group_of_all():
    assert parse_groups("{}", 4) == ((0, 1, 2, 3),)


def test_iota_without_transposition():
    assert parse_groups("[2,8]<=[16]", 16) == (tuple(range(8)), tuple(range(8, 16)))


@pytest.mark.parametrize(("before", "part"), [(1, 2), (2, 2), (1, 4), (4, 2), (2, 4), (1, 8)])
def test_sub_axes_are_axes_of_the_finer_mesh(before, part):
    groups = parse_groups(f"mesh['a'=2,'c'=8] {{'c':({before}){part},'a'}}", 16)
    fine = {"a": 2, "before": before, "part": part, "after": 8 // before // part}
    assert _sets(groups) == _members({"a", "part"}, fine)


@given(st.permutations(range(8)))
def test_device_ids_rename_the_devices(ids):
    text = f"mesh['a'=2,'b'=4], device_ids=({','.join(map(str, ids))}) {{'b'}}"
    assert parse_groups(text, 8) == (tuple(ids[:4]), tuple(ids[4:]))


def test_transposed_device_ids():
    text = "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}"
    assert _sets(parse_groups(text, 8)) == {frozenset({0, 2, 4, 6}), frozenset({1, 3, 5, 7})}


def test_groups_that_are_no_axes_have_none():
    assert axes_of_groups(parse_groups("{{0,3},{1,2}}", 4), {"a": 2, "b": 2}) is None
    assert axes_of_groups(parse_groups("[4,4]<=[2,4,2]T(0,2,1)", 16), {"a": 2, "c": 8}) is None


@pytest.mark.parametrize(
    "text",
    [
        "{{0,1},{2}}", "{{0,1},{1,2}}", "{{0,1}}", "[2,2]<=[2,3]", "[2,2]<=[4]T(1)", "[4]<=[4]",
        "[2,2]<=[2,2]T(0,0)", "mesh['a'=2,'b'=2] {'c'}", "mesh['a'=2,'b'=2] {'a','a'}",
        "mesh['a'=4] {'a':(1)3}", "mesh['a'=4] {'a':(0)2}", "mesh['a'=2,'a'=2] {'a'}",
        "mesh['a'=4,'b'=4] {'a'}", "mesh['a'=2,'b'=2] {'a'} extra", "{{0,,1},{2,3}}", "V2{}", "",
        "mesh['a'=4] {'a':(1)2,'a':(2)2}", "mesh['a'=2,'b'=2], device_ids=(0,1,2) {'a'}",
    ],
)  # fmt: skip
def test_other_forms_are_refused(text):
    with pytest.raises(HloError):
        parse_groups(text, 4)


def test_pairs_move_along_the_axes_whose_groups_they_stay_in():
    mesh = {"node": 2, "seq": 4}
    inner = tuple((n * 4 + i, n * 4 + (i + 1) % 4) for n in range(2) for i in range(4))
    assert axes_of_pairs(inner, mesh) == ("seq",)
    assert axes_of_pairs(((0, 4), (1, 5)), mesh) == ("node",)
    # A ring over both axes crosses nodes in two of its eight pairs only.
    double = tuple((i, (i + 1) % 8) for i in range(8))
    assert axes_of_pairs(double, mesh) == ("node", "seq")
    assert axes_of_pairs((double[7], *double[:7]), mesh) == ("node", "seq")
    assert axes_of_pairs(((3, 3),), mesh) == ()
    with pytest.raises(HloError, match="outside"):
        axes_of_pairs(((0, 8),), mesh)


@given(st.permutations(range(6)), st.integers(1, 6))
def test_pairs_read_back(receivers, count):
    pairs = tuple(zip(range(count), receivers, strict=False))
    text = "{" + ",".join(f"{{{a},{b}}}" for a, b in pairs) + "}"
    assert parse_pairs(text) == pairs


@pytest.mark.parametrize("text", ["{{0,1},{0,2}}", "{{0,1},{2,1}}", "{{0}}", "{{0,1}", "0,1", ""])
def test_other_pairs_are_refused(text):
    with pytest.raises(HloError):
        parse_pairs(text)


def test_positions_are_those_of_the_flat_mesh():
    ids = np.arange(16).reshape(2, 4, 2)
    assert _sets(parse_groups(_mesh_text(["b"]), 16)) == {
        frozenset(ids[i, :, k].tolist()) for i in range(2) for k in range(2)
    }
