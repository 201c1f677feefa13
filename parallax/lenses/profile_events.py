"""The device events of a profiler's trace: what ran on which device, counted once."""

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_GPU = re.compile(r"/device:GPU:(\d+)")
_HOST = "/host:CPU"
_STREAM = "Stream #"
_END = "end: "
_OPERATIONS = "XLA Ops"


@dataclass(frozen=True)
class DeviceEvent:
    """One event of a device.

    Attributes:
      device: number of the device in its process.
      name: name of the event: a kernel, a copy, or on a CPU the operation.
      operation, module: names of the HLO instruction and module; "" where the event has none.
      start_ns, stop_ns: when it ran.
      self_ns: its time without that of events nested in it.
    """

    device: int
    name: str
    operation: str
    module: str
    start_ns: float
    stop_ns: float
    self_ns: float


@dataclass(frozen=True)
class DeviceTrace:
    """The device events of a trace.

    `runtime_ns` holds, on CPUs, the time by name of the threads that run operations, outside of
    operations: XLA's executor between them, and its waits for other threads.
    """

    events: tuple[DeviceEvent, ...]
    runtime_ns: Mapping[str, float] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[int, ...]:
        return tuple(sorted({e.device for e in self.events}))

    def busy_ns(self) -> float:
        """Sum over the devices the time in which anything ran, streams that overlap once."""
        total, ends = 0.0, dict.fromkeys(self.devices, 0.0)
        for e in sorted(self.events, key=lambda e: e.start_ns):
            total += max(0.0, e.stop_ns - max(e.start_ns, ends[e.device]))
            ends[e.device] = max(ends[e.device], e.stop_ns)
        return total

    def span_ns(self) -> float:
        """Sum over the devices the time from the first event's start to the last one's end."""
        return sum(
            max(e.stop_ns for e in self.events if e.device == device)
            - min(e.start_ns for e in self.events if e.device == device)
            for device in self.devices
        )


@dataclass
class _Open:
    """An event, or a span of the CPU's runtime, that later ones of its line may be nested in."""

    stop_ns: float
    self_ns: float
    event: tuple | None
    name: str = ""


def read_events(path: str | Path, platform: str) -> DeviceTrace:
    """Read the device events of an XSpace file, `*.xplane.pb`.

    On a GPU these are the events on the device's streams. On a CPU they are the operations that
    XLA's executor runs on its threads. An event nested in another is not counted in the outer one.

    Args:
      path: the file that JAX's profiler wrote.
      platform: "gpu" or "cpu": the platform of the devices that ran.

    Raises:
      ValueError: the file cannot be read, or it has no device events.
    """
    from jax.profiler import ProfileData

    try:
        with warnings.catch_warnings():
            # Iterating over its C++ values for the first time warns of how their types were made.
            warnings.filterwarnings("ignore", "builtin type .*", DeprecationWarning)
            planes = list(ProfileData.from_file(str(path)).planes)
            trace = _of_gpus(planes) if platform == "gpu" else _of_cpus(planes)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        raise ValueError(
            f"trace {path}: expected an XSpace file (*.xplane.pb), got: {said}. Profile again."
        ) from None
    if not trace.events:
        names = ", ".join(p.name for p in planes) or "none"
        wanted, advice = (
            ("planes /device:GPU:n", "Check that the driver lets this user profile (CUPTI, "
             "NVreg_RestrictProfilingToAdminUsers=0)")
            if platform == "gpu"
            else ("operations on the threads of /host:CPU", "Profile a step while it runs")
        )  # fmt: skip
        raise ValueError(
            f"trace {path}: no device events; expected {wanted}, got planes: {names}. {advice}."
        )
    return trace


def _of_gpus(planes: Iterable[Any]) -> DeviceTrace:
    found: list[DeviceEvent] = []
    for plane in planes:
        match = _GPU.fullmatch(plane.name)
        if match is None:
            continue
        lines = list(plane.lines)
        # Viewers add lines that repeat the streams' events by module, scope and operation.
        streams = [line for line in lines if line.name.startswith(_STREAM)]
        for line in streams or [line for line in lines if line.name == _OPERATIONS]:
            events = [
                (e.start_ns, e.duration_ns, e.name, stats.get("hlo_op", ""),
                 stats.get("hlo_module", ""), int(match[1]))
                for e in line.events for stats in (dict(e.stats),)
            ]  # fmt: skip
            found += _counted_once(events, defaultdict(float))
    return DeviceTrace(tuple(found))


def _of_cpus(planes: Iterable[Any]) -> DeviceTrace:
    found: list[DeviceEvent] = []
    runtime: defaultdict[str, float] = defaultdict(float)
    for line in (x for plane in planes if plane.name == _HOST for x in plane.lines):
        events, runs = [], False
        for e in line.events:
            # Thousands of these mark where an operation ends; reading their stats takes most time.
            stats = {} if e.name.startswith(_END) else dict(e.stats)
            device = stats.get("device_ordinal", 0) if "hlo_op" in stats else None
            runs = runs or device is not None
            events.append((e.start_ns, e.duration_ns, e.name, stats.get("hlo_op", ""),
                           stats.get("hlo_module", ""), device))  # fmt: skip
        if runs:
            found += _counted_once(events, runtime)
    named = sorted(((name, ns) for name, ns in runtime.items() if ns > 0), key=lambda x: -x[1])
    return DeviceTrace(tuple(found), dict(named))


def _counted_once(events: list[tuple], runtime: defaultdict[str, float]) -> Iterator[DeviceEvent]:
    """Yield the device events of one line, each with its own time.

    Spans without a device are the runtime's: inside of an operation they are part of it, outside
    they are added to `runtime` by their names.
    """
    around: list[_Open] = []
    done: list[_Open] = []
    for event in sorted(events, key=lambda e: (e[0], -e[1])):
        start, duration, name, device = event[0], event[1], event[2], event[5]
        while around and around[-1].stop_ns <= start:
            done.append(around.pop())
        if device is None and any(x.event is not None for x in around):
            continue
        if around:
            around[-1].self_ns -= min(start + duration, around[-1].stop_ns) - start
        given = event if device is not None else None
        around.append(_Open(start + duration, duration, given, name))
    for x in (*done, *reversed(around)):
        if x.event is None:
            runtime[x.name] += max(0.0, x.self_ns)
            continue
        start, duration, name, operation, module, device = x.event
        own = max(0.0, x.self_ns)
        yield DeviceEvent(device, name, operation, module, start, start + duration, own)
