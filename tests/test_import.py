"""`import parallax` is quick and harmless: no device, no environment variable, nothing heavy."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
before, start = dict(os.environ), time.perf_counter()
import parallax
print(f"import parallax: {time.perf_counter() - start:.2f} s")
assert dict(os.environ) == before, "environment changed"
heavy = {"matplotlib", "IPython", "orbax", "tensorstore", "jinja2"} & set(sys.modules)
assert not heavy, f"imported {sorted(heavy)}"
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge.backends_are_initialized(), "JAX has started"
"""


def test_import_leaves_everything_as_it_was():
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(ROOT)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    print(run.stdout)


def test_meshes_need_no_jax():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import parallax.meshes.mesh, parallax.meshes.paper_meshes, parallax.meshes.cluster\n"
        "import parallax.meshes.topology\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
