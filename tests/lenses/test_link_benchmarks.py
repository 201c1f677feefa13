"""Which devices each kind of group joins, on made-up nodes; the times mean nothing on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from parallax.cost.measurements import KINDS
from parallax.hlo import read_ledger
from parallax.lenses import link_benchmarks
from parallax.lenses.link_benchmarks import measure_links, nodes_at_hand

NODE_ONE, NODE_TWO = (0, 1, 2), (3, 4, 5)


def nodes(count, inside):
    devices = jax.devices()
    return [devices[i * inside : (i + 1) * inside] for i in range(count)]


def quick(monkeypatch):
    """Leave out the timing: what is asked for is which rows there are."""
    monkeypatch.setattr(link_benchmarks, "_seconds", lambda mesh, axes, one, elements: 1.0)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 4), {(1, 4): 5}), ((4, 1), {(4, 4): 5}), ((1, 1), {}),
     ((2, 3), {(1, 3): 5, (2, 2): 5, (2, 6): 4})],
)  # fmt: skip
def test_groups_by_nodes_and_devices(monkeypatch, shape, groups):
    quick(monkeypatch)
    said = []
    found = measure_links("h100", (1024, 4096), nodes(*shape), on_progress=said.append)
    kinds = {key: [r.kind for r in found if (r.nodes, r.devices) == key] for key in groups}
    assert {key: len(set(names)) for key, names in kinds.items()} == groups
    assert len(found) == 2 * sum(groups.values())
    assert len(said) == len(groups)
    if (2, 6) in groups:
        assert "p2p" not in kinds[2, 6]
        assert set(kinds[2, 2]) == set(KINDS)


@pytest.mark.parametrize(
    ("axes", "groups"),
    [(("inside",), [NODE_ONE, NODE_TWO]), (("node",), [(0, 3), (1, 4), (2, 5)]),
     (("node", "inside"), [NODE_ONE + NODE_TWO])],
    ids=str,
)  # fmt: skip
def test_the_compiled_groups_are_inside_between_and_all(axes, groups):
    mesh = Mesh(np.array(nodes(2, 3)), ("node", "inside"), axis_types=(AxisType.Auto,) * 2)
    n = len(groups[0])
    one = link_benchmarks._kinds(axes, n)["all-to-all"]
    run = link_benchmarks._repeated(mesh, axes, one)
    text = run.lower(jnp.ones(6 * n, jnp.float32), 2).compile().as_text()
    (found,) = read_ledger(text, {"device": 6})
    assert found.kind == "all-to-all"
    assert [tuple(group) for group in found.groups] == groups
    assert found.count == 2


def test_nodes_of_different_sizes_are_refused():
    uneven = [jax.devices()[:1], jax.devices()[1:3]]
    with pytest.raises(ValueError, match="the nodes have 1, 2 devices.*same number of GPUs"):
        measure_links("h100", (64,), uneven, on_progress=lambda line: None)


def test_one_host_is_one_node():
    assert nodes_at_hand() == [jax.devices()]
