"""Makes the module texts beside it: three tiny programs, compiled for CUDA with no GPU.

Run it as `python tests/hlo/data/make.py`, in an environment with the `aot` extra. The texts are
committed: the fuzz tests need no compiler. Lines that name source files are left out.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment
from parallax.meshes.cluster import cluster
from parallax.meshes.topology import topology_devices

HERE = Path(__file__).parent
OPTIONS = {"xla_gpu_enable_triton_gemm": False}
F16 = jnp.float16
_TABLES = re.compile(
    r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*\n?", re.MULTILINE
)
# Part of every instruction, and nothing here reads it.
_NOISE = re.compile(
    r'( scheduling_name="[^"]*"| stack_frame_id=\d+|"operation_queue_id":"0",|'
    r'"force_earliest_schedule":false,|,"reification_cost":\[\]|,?"device_type":"[A-Z_]*")'
)


def tensor(x, up, down):
    """Two layers under tensor parallelism, while the last result travels to the next stage."""

    def layer(carry, weights):
        x, sent = carry
        sent = lax.ppermute(sent, "stage", [(0, 1)])
        with jax.named_scope("mlp"):
            y = lax.psum(jax.nn.relu(x @ weights[0]) @ weights[1], "tensor")
        return (x + y, sent), None

    (x, sent), _ = lax.scan(layer, (x, x), (up, down))
    return x + sent


def experts(x, weights, rows):
    """Tokens to experts and back; tiles of rows as many as there are; a branch."""
    x = lax.all_to_all(x, "expert", 0, 0, tiled=True)

    def tile(state):
        i, x = state
        part = lax.dynamic_slice_in_dim(x, i * 8, 8)
        return i + 1, lax.dynamic_update_slice_in_dim(x, part @ weights, i * 8, 0)

    with jax.named_scope("tiles"):
        _, x = lax.while_loop(lambda s: s[0] < rows[0], tile, (0, x))
    x = lax.cond(rows[0] > 3, lambda x: jnp.tanh(x @ weights), lambda x: x, x)
    x = lax.all_to_all(x, "expert", 0, 0, tiled=True)
    return lax.psum_scatter(x, "data", scatter_dimension=0, tiled=True)


def decode(x, cache, weights, table, at):
    """A decoding step of two layers: the cache is written in place; the best token at the end."""

    def layer(carry, inputs):
        x, caches, i = carry
        q, k, out = (x @ w for w in inputs)
        new = lax.dynamic_update_slice(caches[i], k[:, None], (0, at, 0))
        caches = lax.dynamic_update_index_in_dim(caches, new, i, 0)
        scores = jnp.einsum("bk,btk->bt", q, new, preferred_element_type=jnp.float32)
        o = jnp.einsum("bt,btk->bk", jax.nn.softmax(scores).astype(x.dtype), new)
        o = lax.all_gather(o * out, "tensor", axis=1, tiled=True)
        return (x + o, caches, i + 1), None

    (x, cache, _), _ = lax.scan(layer, (x, cache, 0), weights)
    logits = x.astype(jnp.float32) @ table
    return lax.top_k(logits, 4)[1], cache


def _cases():
    big, thin = (128, 256), (256, 128)
    return {
        "tensor": (tensor, {"stage": 2, "tensor": 8},
                   (((256, 128), F16, P("stage")), ((2, *big), F16, P(None, None, "tensor")),
                    ((2, *thin), F16, P(None, "tensor"))), P("stage")),
        "experts": (experts, {"data": 2, "expert": 8},
                    (((2048, 64), F16, P(("data", "expert"))), ((64, 64), F16, P()),
                     ((16,), jnp.int32, P(("data", "expert")))), P(("data", "expert"))),
        "decode": (decode, {"tensor": 16},
                   (((4, 64), F16, P()), ((2, 4, 32, 64), F16, P(None, None, None, "tensor")),
                    tuple(((2, 64, 64), F16, P(None, None, "tensor")) for _ in range(3)),
                    ((64, 256), jnp.float32, P()), ((), jnp.int32, P())),
                   (P(), P(None, None, None, "tensor"))),
    }  # fmt: skip


def _is_one(x):
    return isinstance(x, tuple) and len(x) == 3 and isinstance(x[2], P)


def make(*, on_progress):
    """name -> text of the compiled module."""
    devices, texts = np.array(topology_devices(cluster("h100_2x8"))), {}
    for name, (function, axes, arguments, out) in _cases().items():
        types = (AxisType.Auto,) * len(axes)
        mesh = Mesh(devices.reshape(*axes.values()), tuple(axes), axis_types=types)
        specs = jax.tree.map(lambda a: a[2], arguments, is_leaf=_is_one)
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a[0], a[1], sharding=NamedSharding(mesh, a[2])),  # noqa: B023
            arguments, is_leaf=_is_one,
        )  # fmt: skip
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
        text = jax.jit(mapped).lower(*shapes).compile(OPTIONS).as_text()
        assert text is not None
        texts[name] = _NOISE.sub("", _TABLES.sub("", text))
        on_progress(f"{name}: {len(texts[name])} characters")
    return texts


if __name__ == "__main__":
    for name, text in run_in_child(
        make, environment=compile_environment(), on_progress=print
    ).items():
        (HERE / f"{name}.hlo").write_text(text, encoding="utf-8")
