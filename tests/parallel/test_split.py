"""Split: sums where the rules split, nothing elsewhere, and a forgotten sum is seen at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from parallax.meshes.mesh import MeshSpec
from parallax.parallel.split import UNSPLIT, Split

AXES = {"mlp": ("tensor",), "heads": ("tensor",), "lookup": ("tensor",), "act_mlp": ("tensor",)}
SPLIT = Split(AXES, {"tensor": 8})
MESH = MeshSpec({"tensor": 8})


def on_tensor(body, in_specs, out_specs):
    mesh = MESH.build(jax.devices()[:8])
    return jax.jit(jax.shard_map(body, mesh=mesh, in_specs=in_specs, out_specs=out_specs))


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("reduce_dtype", [None, "float32"])
def test_contract_sums_over_what_splits(reduce_dtype):
    x, w = draw((2, 3, 16), 0), draw((16, 4), 1)
    split = Split(AXES, {"tensor": 8}, reduce_dtype=reduce_dtype)
    found = on_tensor(
        lambda x, w: split.contract(x, w, "blf,fd->bld", over="mlp"),
        (P(None, None, "tensor"), P("tensor")), P(),
    )(x, w)  # fmt: skip
    tolerance = 1e-12 if reduce_dtype is None else 1e-5
    np.testing.assert_allclose(found, x @ w, atol=tolerance)
    if reduce_dtype is not None:
        assert np.abs(np.asarray(found - x @ w)).max() > 1e-12  # it did cross in float32
    np.testing.assert_allclose(UNSPLIT.contract(x, w, "blf,fd->bld", over="mlp"), x @ w)


def test_widen_undoes_narrow():
    x = draw((2, 3, 16), 0)
    found = on_tensor(lambda x: SPLIT.gather_width(SPLIT.shard_width(x)), P(), P())(x)
    np.testing.assert_array_equal(found, x)


def test_a_forgotten_sum_is_seen_while_tracing():
    x, w = draw((2, 3, 16), 0), draw((16, 4), 1)

    def forgets(x, w):
        SPLIT.assert_sharding(x, "act_batch", "act_seq", "act_mlp")
        return SPLIT.assert_sharding(x @ w, "act_batch", "act_seq", "act_embed")

    with pytest.raises(AssertionError, match=r"differs over \['tensor'\]: a sum is missing"):
        on_tensor(forgets, (P(None, None, "tensor"), P("tensor")), P())(x, w)
    with pytest.raises(AssertionError, match="name 2 dims, the array has 3"):
        UNSPLIT.assert_sharding(x, "act_batch", "act_seq")


def test_query_heads_that_straddle_groups_are_refused():
    kv = draw((1, 4, 4, 2), 0)  # 24 query heads in groups of 6; 3 heads a device
    found = on_tensor(lambda kv: SPLIT.match_kv_heads(kv, 4, 24), P(), P(None, None, "tensor"))(kv)
    np.testing.assert_array_equal(found, jnp.repeat(kv, 2, axis=2))
    with pytest.raises(ValueError, match="3 query heads per device straddle groups of 2"):
        on_tensor(lambda kv: SPLIT.match_kv_heads(kv, 12, 24), P(), P())(draw((1, 4, 12, 2), 0))
