"""The devices that a comparison measures on."""

from collections.abc import Mapping, Sequence

from parallax.distributed.processes import process_count
from parallax.lenses.device_process import run_on_devices, virtual_devices_for
from parallax.lenses.measuring import devices_at_hand
from parallax.strategy import Strategy
from parallax.workload import Workload

type Refused = dict[str, dict[str, str]]


def devices_to_measure(
    cases: Sequence[tuple[Strategy, Workload]], refused: Mapping[str, Mapping[str, str]]
) -> tuple[bool, Refused]:
    """Return whether devices are virtual, and `refused` with strategies that need more of them.

    With CPUs alone measure uses virtual devices, as many as a mesh needs. A strategy whose mesh
    needs more devices than there are is not measured.

    Args:
      cases: the strategies to measure, each with its workload.
      refused: strategy name -> lens -> why the strategy cannot run it.
    """
    virtual_devices_for(max(strategy.mesh.size for strategy, _ in cases))
    platform, kind, count = run_on_devices(devices_at_hand, environment={})
    virtual = platform == "cpu"
    found = {name: dict(why) for name, why in refused.items()}
    if virtual and process_count() == 1:
        return virtual, found
    for strategy, _ in cases:
        if strategy.mesh.size > count:
            found.setdefault(strategy.name, {})["measure"] = (
                f"Strategy '{strategy.name}': mesh {strategy.mesh} needs {strategy.mesh.size} "
                f"devices to measure on, there are {count} ({kind}). Use a mesh of {count}, or "
                "leave out the measure lens."
            )
    return virtual, found
