"""The ragged exchange as a GPU would run it: its offsets and sizes, by JAX's own description."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parallax.parallel.experts import ExchangeExperts, route
from parallax.parallel.experts.chunks import node_capacity
from parallax.parallel.experts.dispatch import capacity, offsets
from parallax.parallel.experts.fixed_routing import fixed_expert_ids, rows_between, rows_to_nodes
from parallax.parallel.experts.node_exchange import node_step
from tests.parallel.experts.textbook import (
    distance,
    draw,
    expert_weights,
    mesh_of,
    mixture,
    with_gradients,
)

pytestmark = pytest.mark.slow

NODES = ("node", "expert")
TOKENS, WIDTH, EXPERTS = 64, 4, 16


def ragged_by_description(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    """`lax.ragged_all_to_all` in gathers and masks; NaN where two sides' sizes disagree."""
    devices, me = lax.axis_size(axis_name), lax.axis_index(axis_name)
    everyone = [
        lax.all_gather(x, axis_name) for x in (operand, input_offsets, send_sizes, output_offsets)
    ]
    slices, row = len(send_sizes) // devices, jnp.arange(len(output), dtype=jnp.int32)
    for source in range(devices):
        rows, starts, sizes, lands = (x[source] for x in everyone)
        for j in range(slices):
            mine = me.astype(jnp.int32) * slices + j
            within = row - lands[mine]
            arrives = jnp.logical_and(within >= 0, within < sizes[mine])
            values = rows.at[starts[mine] + within].get(mode="fill", fill_value=jnp.nan)
            agreed = jnp.where(recv_sizes[source * slices + j] == sizes[mine], values, jnp.nan)
            output = jnp.where(arrives[:, None], agreed, output)
    return output


@pytest.mark.parametrize("node_aware", [False, True], ids=["flat", "node-aware"])
def test_ragged_sends_the_right_rows(monkeypatch, node_aware):
    monkeypatch.setattr(lax, "ragged_all_to_all", ragged_by_description)
    part = ExchangeExperts(NODES, exchange="ragged", node_aware=node_aware, tile=4, chunks=3)
    spec = jax.sharding.PartitionSpec(NODES)

    def local(x, logits, weights):
        return part.run(
            x, route(logits, 2), weights, num_experts=EXPERTS, expert_axes=NODES, platform="gpu"
        )[0]

    run = jax.shard_map(
        local, mesh=mesh_of({"node": 2, "expert": 2}), in_specs=spec, out_specs=spec
    )
    args = (
        draw(TOKENS, WIDTH), draw(TOKENS, EXPERTS, seed=1) * 2,
        expert_weights(EXPERTS, WIDTH, 4, False),
    )  # fmt: skip
    d_out = draw(TOKENS, WIDTH, seed=2)
    found = with_gradients(run, d_out)(*args)
    expected = with_gradients(lambda x, r, w: mixture(x, r, w, 2), d_out)(*args)
    assert max(distance(found, expected)) <= 1e-12


def test_rows_sent_are_the_choices_there_are():
    """Flat: a row for each choice. Node-aware: one for each token and node, the least there is."""
    devices, each = 8, TOKENS // 8
    ids = fixed_expert_ids("lognormal:1", TOKENS, EXPERTS, 3, seed=6)
    pieces = jnp.asarray(ids).reshape(devices, each, 3)
    flat = jax.vmap(lambda i: offsets(i, EXPERTS, devices, capacity(each, 3, EXPERTS, devices)))
    sent = flat(pieces).rows_Pe.sum(axis=2)
    np.testing.assert_array_equal(sent, rows_between(ids, EXPERTS, devices))
    step = jax.vmap(lambda i: node_step(i, jnp.ones(i.shape), EXPERTS, 2, None))(pieces)
    least = rows_to_nodes(ids, EXPERTS, 2, devices)
    np.testing.assert_array_equal(step.to.rows_Pe[:, :, 0], least)
    assert least.sum() < rows_between(ids, EXPERTS, devices).sum()
    assert node_capacity(each, 3, EXPERTS, 2, None).rows == each
