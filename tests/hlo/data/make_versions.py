"""Makes the texts in versions/: small sharded programs as one version of JAX prints them.

Run it with each version, in an environment of its own, from 0.4 on:
  python tests/hlo/data/make_versions.py cpu
  python tests/hlo/data/make_versions.py cuda     (with the CUDA plugin; no GPU is needed)
Each program is kept as compiled and as lowered, without JAX's paths, as one gzip per version and
platform: the programs are separated by lines `=== NAME`. What they must count is in
`tests/hlo/test_versions.py`. It imports nothing of Parallax, which needs a newer JAX.
"""

import functools
import glob
import gzip
import os
import re
import sys
import tempfile
from pathlib import Path

DUMP = tempfile.mkdtemp()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count=8 --xla_dump_to={DUMP} --xla_dump_hlo_as_text"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax import lax  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

HERE = Path(__file__).parent
TARGET = HERE.parents[2] / "parallax/meshes/targets/h100_sxm.txtpb"
# Fields of the target config that older compilers do not know.
NEWER = re.compile(
    r"^.*(thread_dim_limit|device_vendor|platform_version|device_address|pcie|ecc|driver_version|"
    r"runtime_version|toolkit|dnn_version:|collective_memory|device_interconnect|^  name).*\n| "
    r"feature_extension: ACCELERATED_FEATURES",
    re.MULTILINE,
)
if hasattr(jax, "shard_map"):
    shard_map = functools.partial(jax.shard_map, check_vma=False)
else:
    from jax.experimental.shard_map import shard_map as _shard_map

    shard_map = functools.partial(_shard_map, check_rep=False)


def mlp(x, up, down):
    def layer(x, w):
        return lax.psum(jax.nn.relu(x @ w[0]) @ w[1], "b"), None

    return lax.scan(layer, x, (up, down))[0]


def five(x):
    x = lax.psum(x, "b") / 4
    x = lax.all_gather(x, "a", axis=0, tiled=True)
    x = lax.psum_scatter(x, "a", scatter_dimension=0, tiled=True)
    x = lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)])
    return lax.all_to_all(x, "b", 0, 1, tiled=True)


def auto(x, w):
    return jnp.tanh(x @ w) @ w.T


def until(x, w):
    return lax.while_loop(lambda c: jnp.max(c) < 1e9, lambda c: lax.psum(c @ w, "b"), x)


def branch(x, w):
    return lax.cond(x[0, 0] > 0, lambda: lax.psum(x @ w, "b"), lambda: x)


def programs(mesh):
    """Return name -> (function, arguments)."""

    def struct(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    def mapped(f, inside, out):
        return shard_map(f, mesh=mesh, in_specs=inside, out_specs=out)

    weights = P(None, None, "b"), P(None, "b")
    square = struct((512, 256), "a"), struct((256, 256))
    return {
        "mlp": (mapped(mlp, (P("a"), *weights), P("a")),
                [struct((512, 256), "a"), struct((3, 256, 1024), *weights[0]),
                 struct((3, 1024, 256), *weights[1])]),
        "five": (mapped(five, P("a", "b"), P("a", "b")), [struct((512, 512), "a", "b")]),
        "auto": (auto, [struct((512, 256), "a"), struct((256, 1024), None, "b")]),
        "until": (mapped(until, (P("a"), P()), P("a")), square),
        "branch": (mapped(branch, (P("a"), P()), P("a")), square),
    }  # fmt: skip


def devices(platform):
    if platform == "cpu":
        return jax.devices()
    from jax.experimental import topologies

    target = TARGET.read_text()
    if jax.__version_info__ < (0, 11):
        target = NEWER.sub("", target)
    return topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology="1x1x8", target_config=target
    ).devices


def compiled_text(lowered, platform):
    """Return the compiled text; older plugins give none for an absent GPU, and only dump it."""
    options = {"xla_gpu_enable_triton_gemm": False} if platform == "cuda" else {}
    text = lowered.compile(options).as_text()
    if not text:
        newest = max(glob.glob(f"{DUMP}/*after_optimizations.txt"), key=os.path.getmtime)
        text = Path(newest).read_text()
    return text


def main(platform):
    mesh, parts = Mesh(np.array(devices(platform)).reshape(2, 4), ("a", "b")), []
    for name, (function, arguments) in programs(mesh).items():
        lowered = jax.jit(function).lower(*arguments)
        parts.append(f"=== {name}\n{compiled_text(lowered, platform)}")
        if platform == "cpu":
            parts.append(f"=== {name} before\n{lowered.as_text('hlo')}")
    text = re.sub(r'"[^"\n]*/([\w.]+\.py)"', r'"\1"', "\n".join(parts))
    file = HERE / "versions" / f"{jax.__version__}-{platform}.txt.gz"
    file.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{file.name}: {len(text)} characters, {file.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
