"""No kernel writes past the end of a row, or reads past the end of an array, on a real GPU.

Swizzled copies stop at the end of each dimension. A plain copy runs on through memory to the
array's end, and loads and stores of threads do not stop at all; the interpreter clips both. So what
these take at a time must divide what they take it from. Copies in that are plain are left out:
what they bring of the next row belongs to rows or columns that nothing writes.
"""

import jax
import pytest
from jax._src.state.indexing import NDIndexer
from jax._src.state.types import AbstractRef
from jax.experimental.pallas import mosaic_gpu as plgpu

from parallax.kernels.interpreting import interpreted
from parallax.kernels.operations import OPERATIONS
from parallax.kernels.ring_attention import cases as attention
from parallax.kernels.ring_attention.tiles import CANDIDATES

CASES = [(name, case) for name, op in OPERATIONS.items() for case in (*op.SMALL, *op.SHIPPED)] + [
    (
        "ring_attention",
        attention.Case(
            head_dim,
            "bfloat16",
            length,
            length,
            tile=name,
            first=tile.persistent,
            last=tile.persistent,
        ),
    )
    for head_dim, tiles in CANDIDATES.items()
    for name, tile in tiles.items()
    for length in (312, 625)
]
# Copies through descriptors, which know the end of each dimension.
CLIPPED = {"copy_gmem_to_smem", "async_prefetch"}


def equations(jaxpr):
    """All of them, of inner programs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for x in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(x, "jaxpr", x)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def is_unbounded(eqn) -> bool:
    name = eqn.primitive.name
    swizzled = "Unswizzle" in str(eqn.params.get("src_transforms_treedef", ""))
    return name not in CLIPPED and not (name == "copy_smem_to_gmem" and swizzled)


def slices(eqn):
    """(array's shape, extent of what is taken) for each array in device memory."""
    arrays = [
        v.aval.shape
        for v in eqn.invars
        if isinstance(v.aval, AbstractRef) and v.aval.memory_space == plgpu.GMEM
    ]
    for tree in eqn.params.values():
        if not isinstance(tree, jax.tree_util.PyTreeDef):
            continue
        leaves = tree.unflatten([jax.numpy.int32(0)] * tree.num_leaves)
        for x in jax.tree.leaves(leaves, is_leaf=lambda x: isinstance(x, NDIndexer)):
            if isinstance(x, NDIndexer) and x.shape in arrays:
                yield x.shape, tuple(getattr(index, "size", 1) for index in x.indices)


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(n, c, id=f"{n}-{c.name}", marks=() if i % 8 == 0 else pytest.mark.exhaustive)
     for i, (n, c) in enumerate(CASES)],
)  # fmt: skip
def test_what_is_taken_at_a_time_divides_the_array(name, case):
    operation = OPERATIONS[name]
    with interpreted():
        arrays = jax.eval_shape(lambda: operation.inputs(case, 0))
        traced = jax.make_jaxpr(operation.program(case, "mosaic"))(*arrays)
    found = {
        (eqn.primitive.name, *taken)
        for eqn in equations(traced.jaxpr)
        if is_unbounded(eqn)
        for taken in slices(eqn)
    }
    assert found
    for what, shape, extent in sorted(found):
        assert not any(n % size for n, size in zip(shape, extent, strict=True)), (
            f"{what} takes {extent} of {shape} at a time"
        )
