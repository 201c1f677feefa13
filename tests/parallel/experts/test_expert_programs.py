"""Experts at a paper's width as CUDA programs, compiled with no GPU: memory, and what overlaps."""

import dataclasses
import math
from typing import Any

import pytest

from parallax.hlo.module import Computation, Module
from parallax.hlo.parse import parse_module
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment
from parallax.meshes.cluster import cluster
from parallax.parallel.experts import ExchangeExperts
from parallax.parallel.experts.grouped_mlp import SCOPE

pytestmark = pytest.mark.full

TOKENS, WIDTH, HIDDEN, EXPERTS = 10_000, 8192, 32768, 16
NODES = ("node", "expert")
CHUNKS = 4

# XLA switches its latency-hiding scheduler on by itself only for collectives whose time it can
# estimate, and a ragged exchange is none of these.
HIDE = {"xla_gpu_enable_latency_hiding_scheduler": True}


@dataclasses.dataclass(frozen=True)
class Case:
    part: ExchangeExperts
    axes: tuple[tuple[str, int], ...] = (("expert", 16),)
    gradient: bool = False
    options: tuple[tuple[str, bool], ...] = ()


CASES = {
    "dense": Case(ExchangeExperts(), gradient=True),
    "ragged": Case(ExchangeExperts(exchange="ragged"), gradient=True, options=tuple(HIDE.items())),
    "node-aware": Case(ExchangeExperts(NODES, node_aware=True), (("node", 2), ("expert", 8))),
}


def compile_cases(cases: list[Case], on_progress) -> list[tuple[str, int]]:
    """(scheduled HLO, bytes a device) of each; runs in a child process."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from parallax.meshes.mesh import MeshSpec
    from parallax.meshes.topology import topology_devices
    from parallax.parallel.experts import ExpertWeights, route

    found = []
    for case in cases:
        mesh = MeshSpec(case.axes).build(topology_devices(cluster("h100_2x8")))
        over = tuple(name for name, _ in case.axes)

        def local(x, logits, weights, part=case.part, over=over):
            return part.run(
                x, route(logits, 2), weights, num_experts=EXPERTS, expert_axes=over, platform="gpu"
            )[0]

        run = jax.shard_map(local, mesh=mesh, in_specs=P(over), out_specs=P(over), check_vma=True)

        def loss(x, logits, weights, run=run):
            return run(x, logits, weights).astype(jnp.float32).sum()

        def struct(*shape, dtype: Any = jnp.float16, mesh=mesh, over=over) -> Any:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(over)))

        function = jax.value_and_grad(loss, argnums=(0, 1, 2)) if case.gradient else run
        compiled = jax.jit(function).lower(
            struct(16 * TOKENS, WIDTH),
            struct(16 * TOKENS, EXPERTS, dtype=jnp.float32),
            ExpertWeights(struct(EXPERTS, WIDTH, HIDDEN), struct(EXPERTS, HIDDEN, WIDTH)),
        ).compile(compiler_options=dict(case.options))  # fmt: skip
        memory: Any = compiled.memory_analysis()
        total = (
            memory.argument_size_in_bytes + memory.output_size_in_bytes
            + memory.temp_size_in_bytes - memory.alias_size_in_bytes
        )  # fmt: skip
        found.append((compiled.as_text(), total))
    return found


@pytest.fixture(scope="module")
def compiled(aot):
    """Scheduled programs and bytes of all cases, made once in one child process."""
    found = run_in_child(compile_cases, list(CASES.values()), environment=compile_environment())
    return {
        name: (parse_module(text), total) for name, (text, total) in zip(CASES, found, strict=True)
    }


def row_exchanges(module: Module, rows: set[int]) -> list[bool]:
    """Of each exchange of so many rows: does a loop of experts run between its start and done?"""
    return [
        beside(computation, position)
        for computation in module.computations.values()
        for position, i in enumerate(computation.instructions)
        if i.opcode.removesuffix("-start") in ("all-to-all", "ragged-all-to-all")
        and computation.operand_shapes(i)[0].n_bytes in {n * WIDTH * 2 for n in rows}
    ]


def beside(computation: Computation, position: int) -> bool:
    start = computation.instructions[position]
    if not start.opcode.endswith("-start"):
        return False
    rest = computation.instructions[position + 1 :]
    done = next(n for n, i in enumerate(rest) if start.name in i.operands)
    return any(i.opcode == "while" and SCOPE in i.op_name for i in rest[:done])


@pytest.mark.parametrize("name", CASES)
def test_fits(compiled, name):
    where = cluster("h100_2x8")
    assert compiled[name][1] <= where.usable_fraction * where.gpu.memory_bytes


@pytest.mark.parametrize("name", CASES)
def test_rows_travel_while_experts_run(compiled, name):
    """All but the first exchange, of chunk 0, and the last one: nothing is left to run there.

    Of the node-aware program it is the exchange between nodes, whose links are the slow ones.
    """
    chunk = math.ceil(TOKENS / CHUNKS)
    peers = dict(CASES[name].axes).get("node", EXPERTS)
    found = row_exchanges(compiled[name][0], {peers * chunk, 2 * peers * chunk})
    passes = 2 if CASES[name].gradient else 1
    # A tick before the loop of steady ones, the loop, and a tick after it.
    assert found.count(True) == 3 * passes
    assert found.count(False) == 2 * passes


def test_no_product_is_larger_than_a_tile(compiled):
    """Compute follows the rows: the dispatch buffer of 40000 rows is never multiplied."""
    module, _ = compiled["dense"]
    tiles = {CASES["dense"].part.tile}
    dots = [
        i.shape.dims
        for c in module.computations.values()
        for i in c.instructions
        if i.opcode == "dot" and SCOPE in i.op_name
    ]
    assert dots
    assert all(not {2500, 40_000, 80_000} & set(dims) for dims in dots), dots
    assert any(tiles & set(dims) for dims in dots)
