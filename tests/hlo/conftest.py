"""Small programs, compiled for 16 virtual CPU devices and, where it can be, for CUDA."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from parallax.lenses.environment import missing_compiler
from parallax.meshes.cluster import cluster
from parallax.meshes.topology import topology_devices

P = PartitionSpec
RING = [(i, (i + 1) % 4) for i in range(4)]


@dataclass(frozen=True)
class Case:
    """A program's compiled text beside its jaxpr."""

    text: str
    jaxpr: Any
    axes: Mapping[str, int]


class Compiler:
    """Meshes of one platform, and what functions compile to there."""

    def __init__(self, platform: str, devices: list):
        self.platform, self.devices = platform, np.array(devices)

    def mesh(self, **axes: int) -> Mesh:
        types = (AxisType.Auto,) * len(axes)
        return Mesh(self.devices.reshape(*axes.values()), tuple(axes), axis_types=types)

    def __call__(self, function: Callable, mesh: Mesh, *arguments, options=None) -> Case:
        """Compiles for arguments (shape, dtype, *spec)."""
        shapes = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
            for shape, dtype, *spec in arguments
        ]
        traced = jax.jit(function).trace(*shapes)
        text = traced.lower().compile(compiler_options=options).as_text()
        assert text is not None
        return Case(text, traced.jaxpr, dict(mesh.shape))


def _cuda() -> Compiler:
    missing = missing_compiler()
    if missing:
        pytest.skip(missing)
    return Compiler("cuda", topology_devices(cluster("h100_2x8")))


@pytest.fixture(scope="session", params=["cpu", "cuda"])
def compiler(request) -> Compiler:
    return _cuda() if request.param == "cuda" else Compiler("cpu", jax.devices())


@pytest.fixture(scope="session")
def cuda() -> Compiler:
    return _cuda()


@pytest.fixture(scope="session")
def five(compiler) -> Callable[..., Case]:
    """All five kinds of collective around a product, five times over."""

    def compiled(dtype) -> Case:
        def step(x, w):
            x = lax.psum(x @ w, "b")
            x = lax.all_gather(x, "a", axis=0, tiled=True)
            x = lax.psum_scatter(x, "a", scatter_dimension=0, tiled=True)
            x = lax.ppermute(x, "a", RING)
            parts = x.reshape(4, -1, x.shape[-1])
            return lax.all_to_all(parts, "b", 0, 0, tiled=True).reshape(x.shape) / 2

        def body(x, w):
            return lax.scan(lambda x, _: (step(x, w), None), x, None, length=5)[0]

        mesh = compiler.mesh(a=4, b=4)
        mapped = jax.shard_map(body, mesh=mesh, in_specs=(P("a", "b"), P()), out_specs=P("a", "b"))
        return compiler(mapped, mesh, ((1024, 1024), dtype, "a", "b"), ((256, 256), dtype))

    return compiled


@pytest.fixture(scope="session")
def five_float16(five) -> Case:
    return five(jnp.float16)
