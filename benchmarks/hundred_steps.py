"""Compare a hundred training steps' losses under every strategy with those on one device.

  python benchmarks/hundred_steps.py benchmarks/cpu/hundred_steps.json [name ...]

Hardware: any machine; 16 virtual CPU devices. Small models of the tests, AdamW with warmup and
clipping, the same seed and batches. Result: for each strategy the largest relative difference of a
loss from the unsharded run's, in float64 (limit 1e-9) and float32 (limit 1e-4); minutes.
"""

import json
import sys
import time
from pathlib import Path

from parallax.lenses.child import run_in_child
from parallax.lenses.environment import cpu_environment

STEPS, BATCH, SEQ_LEN = 100, 16, 32
LIMITS = {"float64": 1e-9, "float32": 1e-4}


def losses(config, strategy, microbatches: int, dtype: str, batches):
    """Return the losses of all steps, [STEPS]."""
    import functools

    import jax
    import numpy as np

    from parallax.engine.optimizer import Adamw
    from parallax.lenses.verifying import cast, draw
    from parallax.programs.sharded_model import ShardedTransformer
    from parallax.programs.training import TrainStep
    from parallax.workload import Workload

    sharded = ShardedTransformer(
        config.replace(dtype=dtype), strategy, Workload(BATCH, SEQ_LEN, microbatches)
    )
    step = TrainStep(sharded, Adamw(3e-3, warmup_steps=10).build(STEPS), param_dtype=dtype)
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    shardings = step.shardings(mesh)
    params = jax.jit(sharded.shard, out_shardings=shardings.params)(
        cast(draw(config.replace(dtype="float32")), dtype)
    )
    run = jax.jit(
        functools.partial(jax.lax.scan, step.step(mesh)), donate_argnums=0,
        out_shardings=(shardings, None),
    )  # fmt: skip
    return np.asarray(run(step.start(params, mesh), batches)[1], np.float64)


def run_all(names, *, on_progress) -> dict:
    """Return a row per strategy; runs in a child with 16 devices."""
    import jax.numpy as jnp
    import numpy as np

    from parallax.lenses.text import read_text
    from parallax.strategies import data_parallel
    from tests.strategies import cases

    text = np.frombuffer(read_text(None, STEPS * BATCH * SEQ_LEN)[0], np.uint8)
    batches = jnp.asarray(text[: STEPS * BATCH * SEQ_LEN].reshape(STEPS, BATCH, SEQ_LEN), jnp.int32)
    families = {
        "": (cases.SMALL, cases.STRATEGIES | cases.VARIANTS | cases.HYBRIDS),
        "experts, ": (cases.EXPERTS, cases.WITH_EXPERTS),
        "unequal stages, ": (cases.UNEQUAL, cases.UNEQUAL_STAGES),
    }
    rows: dict = {}
    for prefix, (config, strategies) in families.items():
        exact = {
            dtype: losses(config, data_parallel(1), 1, dtype, batches) for dtype in LIMITS
        }  # fmt: skip
        for name, strategy in strategies.items():
            title = prefix + name
            if names and title not in names:
                continue
            start = time.perf_counter()
            local = BATCH // strategy.split().count("act_batch")
            row = {}
            for dtype in LIMITS:
                row_losses = losses(config, strategy, min(4, local), dtype, batches)
                row[dtype] = float(np.abs(row_losses / exact[dtype] - 1).max())
            row |= {"first": exact["float64"][0], "last": exact["float64"][-1]}
            row["seconds"] = round(time.perf_counter() - start, 1)
            rows[title] = row
            on_progress(
                f"{title}: float64 {row['float64']:.1e}, float32 {row['float32']:.1e} "
                f"({row['seconds']} s)"
            )
    return rows


def main() -> None:
    """Run, print and write; exit with status 1 if a limit is exceeded."""
    rows = run_in_child(
        run_all, sys.argv[2:], environment=cpu_environment(16, fast_code=True),
        on_progress=lambda line: print(line, flush=True),
    )  # fmt: skip
    passed = all(row[dtype] <= limit for row in rows.values() for dtype, limit in LIMITS.items())
    record = {"steps": STEPS, "limits": LIMITS, "passed": passed, "strategies": rows}
    Path(sys.argv[1]).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print("passed" if passed else "NOT passed")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
