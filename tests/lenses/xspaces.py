"""XSpace files of made-up traces, written by JAX's own reader of their text."""

from pathlib import Path

from jax.profiler import ProfileData

_STATS = ("hlo_op", "hlo_module", "device_ordinal")


def event(name, start_us, duration_us, **stats):
    """One event: its name, when it ran in microseconds, and what the profiler notes of it."""
    return name, start_us, duration_us, stats


def xspace(planes) -> str:
    """The text of an XSpace: plane -> line -> events."""
    made = []
    for plane, lines in planes.items():
        names = sorted({e[0] for events in lines.values() for e in events})
        known = "".join(
            f'event_metadata {{ key: {n} value {{ id: {n} name: "{name}" }} }}\n'
            for n, name in enumerate(names, 1)
        ) + "".join(
            f'stat_metadata {{ key: {n} value {{ id: {n} name: "{name}" }} }}\n'
            for n, name in enumerate(_STATS, 1)
        )
        body = "".join(
            f'lines {{ id: {n} name: "{line}" {"".join(_event(e, names) for e in events)} }}\n'
            for n, (line, events) in enumerate(lines.items(), 1)
        )
        made.append(f'planes {{ name: "{plane}" {known} {body} }}')
    return "\n".join(made)


def _event(one, names):
    name, start, duration, stats = one
    noted = "".join(
        f"stats {{ metadata_id: {_STATS.index(key) + 1} "
        + (f"int64_value: {value}" if isinstance(value, int) else f'str_value: "{value}"')
        + " } "
        for key, value in stats.items()
    )
    return (
        f"events {{ metadata_id: {names.index(name) + 1} offset_ps: {round(start * 1e6)} "
        f"duration_ps: {round(duration * 1e6)} {noted} }} "
    )


def save(planes, folder: Path) -> Path:
    """Write a trace as the profiler would; returns its path."""
    path = folder / "host.xplane.pb"
    path.write_bytes(ProfileData.text_proto_to_serialized_xspace(xspace(planes)))
    return path
