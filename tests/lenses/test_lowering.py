"""Programs that call back to the host compile for absent GPUs; their time has no error bar."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import parallax as px
from parallax.lenses.environment import missing_compiler
from parallax.lenses.lowering import missing_libraries

SHAPE = jax.ShapeDtypeStruct((256, 256), jnp.float32)


def _printing(x):
    jax.debug.print("mean {}", x.mean())
    return x @ x


def _pure(x):
    return jax.pure_callback(np.sin, SHAPE, x @ x)


def _io(x):
    return io_callback(np.sin, SHAPE, x @ x)


@pytest.mark.parametrize("function", [_printing, _pure, _io])
def test_a_program_with_a_callback_is_read_and_its_time_is_a_lower_bound(function):
    if missing := missing_compiler():
        pytest.skip(missing)
    compiled = px.compile_for("h100_1x1", function, SHAPE, mesh={})
    assert compiled.gemm_flops == 2 * 256**3
    assert compiled.work is not None
    (target,) = compiled.work.unpriced
    assert target.endswith("python_gpu_callback")
    predicted = px.predict(compiled)
    assert (predicted.step_s.low, predicted.step_s.high) == (None, None)
    assert target in predicted.unvalidated
    assert any(target in note for note in predicted.notes)
    assert predicted.step_s.value >= compiled.gemm_flops / 989e12


def test_a_missing_library_is_one_line():
    with pytest.raises(ValueError, match="nvidia-cudnn-cu12"), missing_libraries():
        raise RuntimeError("cuDNN not found.")
    with pytest.raises(RuntimeError, match="another"), missing_libraries():
        raise RuntimeError("another")


def _generate(x, w):
    """A loop until a value stops it, and a branch around a sum over devices."""
    with jax.named_scope("generate"):
        x = jax.lax.while_loop(lambda x: jnp.max(x) < 1e9, lambda x: jnp.tanh(x @ w) @ w.T, x)
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w.T, lambda: x)


def test_a_loop_until_a_value_and_a_branch_keep_memory_ledger_and_flops():
    if missing := missing_compiler():
        pytest.skip(missing)
    compiled = px.compile_for(
        "h100_1x8", _generate, SHAPE, jax.ShapeDtypeStruct((256, 512), jnp.float32),
        mesh={"tensor": 8}, in_specs=(None, jax.sharding.PartitionSpec(None, "tensor")),
    )  # fmt: skip
    assert compiled.memory.total_bytes > 0
    assert compiled.gemm_flops == 2 * 2 * 2 * 256 * 256 * 64
    looped = [c for c in compiled.collectives if c.open_loop]
    branched = [c for c in compiled.collectives if c.in_branch]
    assert looped
    assert branched
    assert {c.open_loop.split(" ")[0] for c in looped} == {"generate"}
    assert {c.low_count for c in branched} == {0}
    assert any("trips={'generate': iterations}" in note for note in compiled.notes)
    assert any("in branches" in note for note in compiled.notes)
    step = px.predict(compiled).step_s
    assert step.low is not None
    assert step.high is None
