"""The kernel that reads for measuring: every byte counts; compiled without spills."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parallax.kernels import streaming_read as reading
from parallax.kernels.interpreting import interpreted
from parallax.kernels.streaming_read import LANES, ROWS, STAGES
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import compile_environment


@pytest.mark.parametrize(("blocks", "chunks"), [(132, 1), (4, 7), (2, 2 * STAGES + 3)])
def test_it_adds_up_every_row(monkeypatch, blocks, chunks):
    """Fewer chunks than blocks, more, and more of each block than it has stages."""
    monkeypatch.setattr(reading, "BLOCKS", blocks)
    data = np.random.default_rng(chunks).integers(
        -(2**31), 2**31, (chunks * ROWS, LANES), dtype=np.int32
    )
    with interpreted():
        sums = jax.jit(lambda x: reading.streaming_read(x, jnp.zeros((1, LANES), jnp.int32)))(data)
    assert sums.shape == (min(chunks, blocks), LANES)
    total = np.asarray(sums).sum(axis=0, dtype=np.int32)
    np.testing.assert_array_equal(total, data.sum(axis=0, dtype=np.int32))


def compile_read(*, on_progress):
    import numpy as np

    from parallax.kernels.streaming_read import LANES, ROWS, streaming_read
    from parallax.lenses.machine_code import compile_kernels

    return compile_kernels(
        streaming_read, [np.empty((4096 * ROWS, LANES), np.int32), np.empty((132, LANES), np.int32)]
    )


def test_its_machine_code_has_no_spills(aot):
    (code,) = run_in_child(compile_read, environment=compile_environment())
    print(code)
    assert code.name == "streaming_read"
    assert not code.spills
    assert code.warnings == ()
    assert code.shared_bytes < 140_000
