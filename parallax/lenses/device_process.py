"""The choice of the process that measures: a child, or this one where several share the devices."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from parallax.distributed.processes import process_count
from parallax.lenses.child import Progress, run_in_child
from parallax.lenses.environment import virtual_devices


def run_on_devices(
    function: Callable[..., Any],
    *args: Any,
    environment: Mapping[str, str],
    on_progress: Progress = lambda line: None,
) -> Any:
    """Run `function(*args, on_progress=...)` in a process that has the devices.

    That is a fresh child, as in `run_in_child`. Where several processes were started it is this
    one, as a child would not be among them; all of them have to call it. The devices are then
    those that JAX has started with, and of `environment` only JAX_ENABLE_X64 counts.

    Raises:
      ValueError: virtual CPU devices are asked for, and the processes have started on others.
    """
    if process_count() == 1:
        return run_in_child(function, *args, environment=environment, on_progress=on_progress)
    import jax

    platform = jax.devices()[0].platform
    if environment.get("JAX_PLATFORMS", platform) != platform:
        raise ValueError(
            f"virtual CPU devices are asked for, and the {process_count()} processes have started "
            f"on {platform} devices. Leave out virtual, or start them on CPUs (JAX_PLATFORMS=cpu)."
        )
    x64 = environment.get("JAX_ENABLE_X64")
    with contextlib.nullcontext() if x64 is None else jax.enable_x64(x64 == "1"):
        return function(*args, on_progress=on_progress)


def virtual_devices_for(size: int) -> None:
    """Give several processes that run on CPUs their shares of `size` virtual devices.

    Only where JAX_PLATFORMS is cpu and JAX_NUM_CPU_DEVICES is not set, and before JAX starts. One
    process needs none: its children have their own.
    """
    if process_count() == 1:
        return
    import jax

    if jax.config.jax_platforms == "cpu" and jax.config.jax_num_cpu_devices < 1:
        virtual_devices(-(-size // process_count()))
