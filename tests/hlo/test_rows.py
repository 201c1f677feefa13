"""Rows by kind, axes and dtype: their bytes sum to the ledger's, whatever XLA joined."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from parallax.hlo import HloError, compare, dtype_rows, jaxpr_ledger, read_ledger

P = PartitionSpec
AXES = {"a": 2, "b": 2}
JOINED = """\
HloModule m, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

ENTRY %main (p: f32[8], q: bf16[12]) -> (f32[8], bf16[12], f32[2]) {
  %p = f32[8]{0} parameter(0)
  %q = bf16[12]{0} parameter(1)
  %u = f32[2]{0} slice(%p), slice={[0:2]}
  %s = (f32[8]{0}, bf16[12]{0}, f32[2]{0}) all-reduce-start(%p, %q, %u), channel_id=1, \
replica_groups={{0,1},{2,3}}, use_global_device_ids=true, to_apply=%add
  %d = (f32[8]{0}, bf16[12]{0}, f32[2]{0}) all-reduce-done(%s)
  %g = (f32[16]{0}, bf16[24]{0}) all-gather(%p, %q), channel_id=2, \
replica_groups={{0,1},{2,3}}, use_global_device_ids=true, dimensions={0}
  ROOT %r = ((f32[8]{0}, bf16[12]{0}, f32[2]{0}), (f32[16]{0}, bf16[24]{0})) tuple(%d, %g)
}
"""


def test_arrays_of_two_dtypes_in_one_collective_have_a_row_each():
    ledger = read_ledger(JOINED, AXES)
    summed, gathered = ledger
    assert summed.parts == (("bf16", 24), ("f32", 40))
    assert gathered.parts == (("bf16", 48), ("f32", 64))
    found = {(r.kind, r.dtype): (r.count, r.total_bytes, r.async_share) for r in dtype_rows(ledger)}
    assert found == {
        ("all-reduce", "f32"): (1, 40, 1),
        ("all-reduce", "bf16"): (1, 24, 1),
        ("all-gather", "f32"): (1, 32, 0),
        ("all-gather", "bf16"): (1, 24, 0),
    }
    assert sum(r.total_bytes for r in dtype_rows(ledger)) == ledger.total()


def test_an_array_of_a_joined_collective_that_is_left_out_is_refused():
    with pytest.raises(HloError, match="bytes back"):
        read_ledger(JOINED.replace("all-gather(%p, %q)", "all-gather(%p)"), AXES)


def test_rows_of_a_real_program(compiler):
    """Gradients in two dtypes over the same axis, five times, and a gather over another."""

    def body(x, y):
        def step(carry, _):
            x, y = carry
            return (lax.psum(x, "b") / 4, lax.psum(y, "b") / 4), None

        x, y = lax.scan(step, (x, y), None, length=5)[0]
        return lax.all_gather(x, "a", axis=0, tiled=True), y

    mesh = compiler.mesh(a=4, b=4)
    mapped = jax.shard_map(
        body, mesh=mesh, in_specs=(P("a"), P("a")), out_specs=(P(), P("a")), check_vma=False
    )
    case = compiler(mapped, mesh, ((64, 32), jnp.float16, "a"), ((64, 32), jnp.float32, "a"))
    ledger = read_ledger(case.text, case.axes)
    assert compare(jaxpr_ledger(case.jaxpr, case.axes), ledger) == ()
    shard = 16 * 32
    assert [(r.kind, r.axes, r.dtype, r.total_bytes) for r in dtype_rows(ledger)] == [
        ("all-reduce", ("b",), "f32", 5 * 1.5 * shard * 4),
        ("all-reduce", ("b",), "f16", 5 * 1.5 * shard * 2),
        ("all-gather", ("a",), "f16", 3 * shard * 2),
    ]
    assert [r.count for r in dtype_rows(ledger)] == [5, 5, 1]
    assert not any(r.is_bound for r in dtype_rows(ledger))
